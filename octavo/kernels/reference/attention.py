"""The paged KV cache and attention over it, one sequence at a time.

    block table of row r, group g:   [ 7 | 2 | 9 | ...]
    token at position p lives in block table[p // block_size], slot p % block_size

Shape letters are those of `octavo.kernels.ops`; L is the number of keys and values that a sequence's queries may see,
B the block size.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.kernels.attention_layer import AttentionLayer, ScoreBias
from octavo.kernels.device import StepBatch
from octavo.kernels.kv_layout import LARGEST_CODE, KVLayout, calibrated_code, kv_scales
from octavo.kernels.reference.dequantize import values

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}


class StepIndex:
    """A step's batch as torch indices."""

    def __init__(self, batch: StepBatch) -> None:
        self.input_ids = torch.from_numpy(batch.input_ids).long()
        self.positions = torch.from_numpy(batch.positions).long()
        self.token_types = None if batch.token_types is None else torch.from_numpy(batch.token_types).long()
        self.starts: list[int] = batch.query_start_loc.tolist()
        self.seq_lens: list[int] = batch.seq_lens.tolist()
        self._rows = batch.rows
        self._tables = batch.block_tables
        self._sequence_of_token = np.repeat(np.arange(len(batch.rows)), np.diff(batch.query_start_loc))

    def blocks_of(self, sequence: int, group: int) -> torch.Tensor:
        """The sequence's row of the block table. It has an entry for each block of the sequence's tokens."""
        return torch.from_numpy(self._tables[group][self._rows[sequence]]).long()

    def token_blocks(self, group: int, block_size: int) -> torch.Tensor:
        """[T] each token's block."""
        rows = torch.from_numpy(self._rows[self._sequence_of_token]).long()
        return torch.from_numpy(self._tables[group])[rows, self.positions // block_size].long()


class Keys(Protocol):
    """Where a layer's keys and values, or latents, wait for the queries that read them."""

    def write(self, step: StepIndex, layer: AttentionLayer, *kv_TKD: torch.Tensor) -> None:
        """kv_TKD: keys and values, or latents."""

    def read(self, step: StepIndex, layer: AttentionLayer, sequence: int, first: int, end: int) -> list[torch.Tensor]:
        """Keys and values, [L, K, D] float32, of positions first .. end - 1."""


class StepKeys:
    """Those of one layer and one step, whose sequences all begin with it. Nothing is rounded or copied, and gradients
    pass through."""

    def __init__(self) -> None:
        self._kv_TKD: tuple[torch.Tensor, ...] = ()

    def write(self, step: StepIndex, layer: AttentionLayer, *kv_TKD: torch.Tensor) -> None:
        self._kv_TKD = kv_TKD

    def read(self, step: StepIndex, layer: AttentionLayer, sequence: int, first: int, end: int) -> list[torch.Tensor]:
        start = step.starts[sequence]
        read = [each[start + first : start + end] for each in self._kv_TKD]
        return read if layer.latent is None else [read[0], read[0][..., : layer.latent.rank]]


class KVPool:
    """The pool's bytes. A layer's part is viewed as [num_blocks, K or V, B, K heads, D]; of latents there is K alone.
    calibrates: writing sets the layer's scales."""

    def __init__(self, layout: KVLayout, pool: NDArray[np.uint8]) -> None:
        self.block_size = layout.block_size
        self.calibrates = False
        self._layout = layout
        self._blocks = torch.from_numpy(pool).view(layout.num_blocks, layout.block_bytes)
        self._scales: dict[AttentionLayer, torch.Tensor] = {}  # [K or V, K heads, 1], of codes; of latents [1, 1, D]

    def write(self, step: StepIndex, layer: AttentionLayer, *kv_TKD: torch.Tensor) -> None:
        blocks = step.token_blocks(layer.group, self.block_size)
        assert bool((blocks != 0).all()), "a live token is never written to the null block"
        slots, cells, numbers = step.positions % self.block_size, self._cells(layer), torch.stack(kv_TKD)
        if self.calibrates:
            self._scales[layer] = _spread(self._calibrated(numbers, layer), layer)
        for which, each in enumerate(numbers):
            cells[blocks, which, slots] = self._stored(layer, which, each)

    def read(self, step: StepIndex, layer: AttentionLayer, sequence: int, first: int, end: int) -> list[torch.Tensor]:
        table = step.blocks_of(sequence, layer.group)
        positions = torch.arange(first, end)
        blocks, slots = table[positions // self.block_size], positions % self.block_size
        assert bool((blocks != 0).all()), "positions inside the window have blocks"
        cells = self._cells(layer)
        read = [cells[blocks, which, slots].float() for which in range(cells.shape[1])]
        if self._layout.dtype in LARGEST_CODE:
            read = [codes * scales for codes, scales in zip(read, self._scales_of(layer), strict=True)]
        return read if layer.latent is None else [read[0], read[0][..., : layer.latent.rank]]

    def _stored(self, layer: AttentionLayer, which: int, values: torch.Tensor) -> torch.Tensor:
        dtype = self._layout.dtype
        if dtype in LARGEST_CODE:
            values = (values / self._scales_of(layer)[which]).clamp(-LARGEST_CODE[dtype], LARGEST_CODE[dtype])
        return (values.round() if dtype == "int8" else values).to(TORCH_DTYPES[dtype])

    def _scales_of(self, layer: AttentionLayer) -> torch.Tensor:
        if layer not in self._scales:
            self._scales[layer] = _spread(torch.from_numpy(np.stack(kv_scales(layer))), layer)
        return self._scales[layer]

    def _calibrated(self, numbers: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """[2, K heads], of keys and values as `KVScales` has them."""
        if layer.latent is None:
            largest = numbers.abs().amax(dim=(1, 3))
        else:
            values, keys = numbers.abs().tensor_split([layer.latent.rank], dim=-1)
            largest = torch.stack([keys.max(), values.max()])[:, None]
        return torch.where(largest > 0, largest / calibrated_code(self._layout.dtype), 1.0)

    def _cells(self, layer: AttentionLayer) -> torch.Tensor:
        self._layout.check(layer)
        start, group = self._layout.layer_offset(layer), self._layout.groups[layer.group]
        bytes_of_layer = self._blocks[:, start : start + self._layout.layer_bytes(group)]
        shape = (1 if group.is_latent else 2, self.block_size, group.num_kv_heads, group.head_dim)
        return bytes_of_layer.view(TORCH_DTYPES[self._layout.dtype]).unflatten(1, shape)  # type: ignore[no-any-return, no-untyped-call]


def _spread(scales: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
    """Scales [2, K heads] as they multiply what is stored: a head's numbers, or a latent's and then its key's."""
    if layer.latent is None:
        return scales.unsqueeze(-1)
    keys, values = scales.expand(2, layer.head_dim)
    return torch.cat([values[: layer.latent.rank], keys[layer.latent.rank :]])[None, None]


def rotate(x_TXD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (i, i + rotary_dim / 2) of every head by its angle. cos, sin: [T, rotary_dim / 2]."""
    half = cos.shape[-1]
    a, b, rest = x_TXD[..., :half], x_TXD[..., half : 2 * half], x_TXD[..., 2 * half :]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def rotate_neighbours(x_TXD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (2i, 2i + 1) of every head by its angle. cos, sin: [T, D / 2]."""
    a, b = x_TXD[..., 0::2], x_TXD[..., 1::2]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def paged_attention(
    q: torch.Tensor, layer: AttentionLayer, cache: Keys, step: StepIndex, sinks_Q: torch.Tensor | None = None
) -> torch.Tensor:
    """[T, Q * D] -> [T, Q * D], of latents [T, Q * R]."""
    q_TQD = q.reshape(len(q), layer.num_heads, layer.head_dim)
    out_TQD = q_TQD.new_empty(len(q), layer.num_heads, layer.value_dim)
    for sequence, (start, end) in enumerate(zip(step.starts, step.starts[1:], strict=False)):
        out_TQD[start:end] = _attend(q_TQD[start:end], layer, cache, step, sequence, sinks_Q)
    return out_TQD.flatten(-2)


def _attend(
    q_TQD: torch.Tensor,
    layer: AttentionLayer,
    cache: Keys,
    step: StepIndex,
    sequence: int,
    sinks_Q: torch.Tensor | None,
) -> torch.Tensor:
    """One sequence: scores, mask, softmax, weighted values."""
    seq_len, num_tokens = step.seq_lens[sequence], len(q_TQD)
    positions_T = torch.arange(seq_len - num_tokens, seq_len)
    first = 0 if layer.window is None else max(0, seq_len - num_tokens - layer.window + 1)
    k_LKD, v_LKD = cache.read(step, layer, sequence, first, seq_len)
    k_LQD, v_LQD = (x.repeat_interleave(layer.num_heads // layer.num_kv_heads, dim=1) for x in (k_LKD, v_LKD))

    scores_QTL = torch.einsum("tqd,lqd->qtl", q_TQD, k_LQD) * layer.scale
    if layer.bias is not None:
        reach = len(layer.bias.buckets) // 2
        apart_TL = torch.arange(first, seq_len)[None, :] - positions_T[:, None]
        scores_QTL += _bias_of(layer.bias)[:, apart_TL.clamp(-reach, reach) + reach]
    if layer.softcap is not None:
        scores_QTL = layer.softcap * torch.tanh(scores_QTL / layer.softcap)
    distance_TL = positions_T[:, None] - torch.arange(first, seq_len)[None, :]
    hidden_TL = (distance_TL < 0) & layer.is_causal
    if layer.window is not None:
        hidden_TL |= distance_TL.abs() >= layer.window
    scores_QTL = scores_QTL.masked_fill(hidden_TL, -torch.inf)
    if sinks_Q is not None:
        scores_QTL = torch.cat([scores_QTL, sinks_Q[:, None, None].expand(-1, num_tokens, 1)], dim=-1)
    weights_QTL = torch.softmax(scores_QTL, dim=-1)[..., : len(k_LKD)]
    return torch.einsum("qtl,lqd->tqd", weights_QTL, v_LQD)


def _bias_of(bias: ScoreBias) -> torch.Tensor:
    """[Q, distances]."""
    return torch.from_numpy(values(bias.table)[bias.buckets].T.copy())
