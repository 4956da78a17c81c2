"""Random ragged steps over a paged cache, and attention over them in plain float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo.kernels.attention_layer import AttentionLayer, KVScales, RotaryTable
from octavo.kernels.device import StepBatch
from octavo.kernels.kv_layout import LARGEST_CODE, KVDType, KVGroup, KVLayout
from octavo.kernels.latent import Latent
from octavo.kernels.reference.dequantize import values
from octavo.kernels.triton.attention.memory import LayerPool
from octavo.testing.made_parameters import parameter
from tests.gpu.device import DEVICE

KV_DTYPE: dict[torch.dtype, KVDType] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
POISON = 0x7F  # of codes in the null block


@dataclass
class PagedBatch:
    """A step: sequences with (cached, new) tokens, blocks scattered over the pool, the null block poisoned."""

    layer: AttentionLayer
    layout: KVLayout
    pool: LayerPool
    raw_pool: torch.Tensor
    qkv: torch.Tensor
    query_lens: list[int]
    seq_lens: torch.Tensor
    query_start_loc: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    block_table: torch.Tensor

    def step(self, decode_threshold: int = 1) -> StepBatch:
        """As the host has it."""
        parts = (self.positions, self.positions, self.query_start_loc, self.seq_lens, self.rows, self.block_table)
        tokens, positions, starts, seq_lens, rows, table = (part.cpu().numpy() for part in parts)
        return StepBatch(tokens, positions, starts, seq_lens, rows, self.block_tables(table), decode_threshold)

    def block_tables(self, table: Any) -> tuple[Any, ...]:
        """The block tables by group: the layer's at its group's index; those before it are never read."""
        return (table,) * (self.layer.group + 1)

    def cells(self, s: int) -> torch.Tensor:
        """[tokens, K, D] element offsets of sequence s's keys in the layer's pool."""
        t = torch.arange(int(self.seq_lens[s]), device=DEVICE)
        size, dim = self.pool.block_size, self.layer.head_dim
        block = self.block_table[self.rows[s], t // size].long()
        head = torch.arange(self.layer.num_kv_heads, device=DEVICE) * size * dim
        start = block * self.pool.block_stride + (t % size) * dim
        return start[:, None, None] + head[None, :, None] + torch.arange(dim, device=DEVICE)

    def keys(self, s: int) -> torch.Tensor:
        """Of latents: with the latent, as it is stored, before the rotated key."""
        rank = 0 if self.layer.latent is None else self.layer.value_dim
        latents, keys = self.pool.data[self.cells(s)].tensor_split([rank], dim=-1)
        return torch.cat([self._numbers(latents, 1), self._numbers(keys, 0)], dim=-1)

    def values(self, s: int) -> torch.Tensor:
        if self.layer.latent is not None:
            return self._numbers(self.pool.data[self.cells(s)[..., : self.layer.value_dim]], 1)
        return self._numbers(self.pool.data[self.cells(s) + self.pool.value_offset], 1)

    @property
    def is_null_block_as_it_was(self) -> bool:
        block = self.raw_pool[: self.pool.block_stride]
        return bool((block == POISON).all() if self.layer.scales else block.isnan().all())

    def _numbers(self, elements: torch.Tensor, which: int) -> torch.Tensor:
        if self.layer.scales is None:
            return elements
        codes = elements.view(torch.float8_e4m3fn if self.layout.dtype == "fp8" else torch.int8).float()
        return codes * torch.from_numpy((self.layer.scales.keys, self.layer.scales.values)[which]).to(DEVICE)[:, None]

    def split_qkv(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [T, Q, D], k and v [T, K, D]."""
        q_heads, kv_heads = self.layer.num_heads, self.layer.num_kv_heads
        heads = self.qkv.view(len(self.qkv), q_heads + 2 * kv_heads, self.layer.head_dim)
        return heads[:, :q_heads], heads[:, q_heads : q_heads + kv_heads], heads[:, q_heads + kv_heads :]

    def attend(self, q: torch.Tensor) -> torch.Tensor:
        """q [T, Q, D] over the cache as it is -> [T, Q * D] float32, of latents [T, Q * R]."""
        layer = self.layer
        out = torch.empty(len(q), layer.num_heads * layer.value_dim, device=DEVICE)
        for s, num_queries in enumerate(self.query_lens):
            start = int(self.query_start_loc[s])
            group = layer.num_heads // layer.num_kv_heads
            k = self.keys(s).float().repeat_interleave(group, 1)
            v = self.values(s).float().repeat_interleave(group, 1)
            scores = torch.einsum("qhd,khd->hqk", q[start : start + num_queries].float(), k) * layer.scale
            if layer.softcap is not None:
                scores = layer.softcap * torch.tanh(scores / layer.softcap)
            key = torch.arange(len(k), device=DEVICE)
            position = self.positions[start : start + num_queries, None]
            seen = key <= position
            if layer.window is not None:
                seen &= key > position - layer.window
            scores = scores.masked_fill(~seen, -torch.inf)
            if layer.sinks is not None:
                scores = torch.cat([scores, self.pool.sinks[:, None, None].expand(-1, num_queries, 1)], -1)
            weights = scores.softmax(-1)[..., : len(k)]
            out[start : start + num_queries] = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
        return out


def make_batch(
    seqs: list[tuple[int, int]],
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    block_size: int = 16,
    window: int | None = None,
    softcap: float | None = None,
    has_norm: bool = False,
    rotary_dim: int | None = None,
    seed: int = 0,
    beside: tuple[KVGroup, ...] = (),
    codes: KVDType | None = None,
    latent_rank: int | None = None,
    has_sinks: bool = False,
) -> PagedBatch:
    """A step in which sequence i has seqs[i] = (tokens cached, tokens new). beside: cache groups before the layer's.
    codes: the type of a pool of 8 bits. latent_rank: the layer's one key is a latent of so many numbers, and more."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    lens = [cached + new for cached, new in seqs]
    num_blocks = 1 + sum(-(-n // block_size) for n in lens)
    groups = (*beside, KVGroup(2, num_kv_heads, head_dim, latent_rank is not None))
    layout = KVLayout(num_blocks, block_size, groups, codes or KV_DTYPE[dtype])
    weights = [parameter(row) for row in rng.uniform(0.5, 1.5, (2, head_dim)).astype(np.float32)]
    layer = AttentionLayer(
        group=len(beside), index_in_group=1, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        scale=head_dim**-0.5, window=window, softcap=softcap,
        q_norm=weights[0] if has_norm else None, k_norm=weights[1] if has_norm else None,
        rotary=rotary_table(rotary_dim, max(lens)) if rotary_dim else None,
        scales=None if codes is None else _random_scales(num_kv_heads, codes, rng),
        latent=None if latent_rank is None else Latent(latent_rank, 1, 1, weights[0]),
        sinks=parameter(np.linspace(-2, 5, num_heads, dtype=np.float32)) if has_sinks else None,
    )  # fmt: skip
    raw = _random_elements(num_blocks * layout.block_bytes // layout.element_bytes, dtype, codes)
    raw[: layout.block_bytes // layout.element_bytes] = torch.nan if codes is None else POISON
    rows = rng.permutation(len(seqs) + 2)[: len(seqs)]
    table = np.zeros((len(seqs) + 2, max(-(-n // block_size) for n in lens)), np.int32)
    free = iter(rng.permutation(num_blocks - 1) + 1)
    for row, n in zip(rows, lens, strict=True):
        for b in range(-(-n // block_size)):
            table[row, b] = next(free)

    def on_device(values: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, np.int32), device=DEVICE)

    sinks = None if layer.sinks is None else torch.as_tensor(values(layer.sinks), device=DEVICE)
    query_lens = [new for _, new in seqs]
    width = (num_heads + 2 * num_kv_heads) * head_dim
    return PagedBatch(
        layer, layout, LayerPool.of(raw.view(torch.uint8), layout, layer, sinks), raw,
        torch.randn(sum(query_lens), width, device=DEVICE).to(dtype), query_lens,
        on_device(lens), on_device(np.cumsum([0, *query_lens])),
        on_device(np.concatenate([np.arange(c, c + n) for c, n in seqs])), on_device(rows), on_device(table),
    )  # fmt: skip


def _random_scales(num_heads: int, codes: KVDType, rng: np.random.Generator) -> KVScales:
    """Of normal numbers."""
    keys, values = (rng.uniform(4, 6, (2, num_heads)) / LARGEST_CODE[codes]).astype(np.float32)
    return KVScales(keys, values)


def _random_elements(number: int, dtype: torch.dtype, codes: KVDType | None) -> torch.Tensor:
    normal = torch.randn(number, device=DEVICE)
    if codes is None:
        return normal.to(dtype)
    limit = LARGEST_CODE[codes]
    spread = (normal * limit / 4).clamp(-limit, limit)
    return spread.round().to(torch.int8) if codes == "int8" else spread.to(torch.float8_e4m3fn).view(torch.uint8)


def rotary_table(rotary_dim: int, max_len: int) -> RotaryTable:
    angle = np.outer(np.arange(max_len), 10000.0 ** -(np.arange(rotary_dim // 2) / (rotary_dim // 2)))
    return RotaryTable(np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
