"""What the attention kernels of one model share on a GPU: plans, the KV pool, and room for partial results.

The pool of `KVLayout` seen as elements of the cache dtype:

    block b = [ layer 0 | layer 1 | ... ]         layer = [ K | V ]         K, V = [kv head, token in block, D]

so one head's keys of one block are a single run of block_size * D elements. A sequence that is attended to in several
items leaves a partial result for each, and `join.py` combines them. Shape letters as in `decode_attention.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.attention_sizes import decode_workspace
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.device import StepLimits
from octavo.kernels.kv_layout import LARGEST_CODE, KVDType, KVLayout, kv_scales
from octavo.kernels.triton.attention.plan import AttentionPlan, make_plan

TORCH_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_POOL_DTYPE = {**TORCH_DTYPE, "fp8": torch.uint8, "int8": torch.int8}
BOX_TOKENS = 16  # tokens of a block that the tensor copy engine reads at once: the fewest that the matrix units take


def padded_dim(head_dim: int) -> int:
    """The width of a tile that holds a head: a power of two that the matrix units take."""
    return max(16, 1 << (head_dim - 1).bit_length())


@dataclass(frozen=True, slots=True, eq=False)
class LayerPool:
    """One layer's view of the pool. Strides and offsets count elements."""

    data: torch.Tensor  # 1-D, starts at the layer's K in block 0
    block_stride: int
    value_offset: int  # from a key to its value
    block_size: int
    rows: TensorDescriptor  # the whole pool as [rows, D], read in boxes of BOX_TOKENS
    layer_row: int  # the layer's first row in block 0
    scales: torch.Tensor  # [2 * K] float32, of keys and then of values; empty if elements are no codes
    codes: dict[str, bool]  # what kernels are compiled for: HAS_CODES, IS_FLOAT
    sinks: torch.Tensor  # [Q] float32, of the layer's heads; empty if it has none

    @property
    def has_sinks(self) -> bool:
        return len(self.sinks) > 0

    @classmethod
    def of(
        cls, pool: torch.Tensor, layout: KVLayout, layer: AttentionLayer, sinks: torch.Tensor | None = None
    ) -> LayerPool:
        """`pool`: the whole KV pool, 1-D uint8. sinks: the layer's, on the device."""
        assert (sinks is None) == (layer.sinks is None), "a layer with sinks brings them"
        elements = pool.view(_POOL_DTYPE[layout.dtype])
        size, dim = elements.element_size(), layer.head_dim
        start = layout.layer_offset(layer) // size
        has_codes = layout.dtype in LARGEST_CODE
        scales = np.concatenate(kv_scales(layer)) if has_codes else np.empty(0, np.float32)
        rows = TensorDescriptor(elements, [elements.numel() // dim, dim], [dim, 1], [BOX_TOKENS, padded_dim(dim)])
        return cls(
            elements[start:], layout.block_bytes // size,
            layer.num_kv_heads * layout.block_size * dim if layer.latent is None else 0,
            layout.block_size, rows, start // dim, torch.from_numpy(scales).to(pool.device),
            {"HAS_CODES": has_codes, "IS_FLOAT": layout.dtype == "fp8"},
            torch.empty(0, dtype=torch.float32, device=pool.device) if sinks is None else sinks,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class DecodeWorkspace:
    """Partial results before the join. Layers share it, because they run one after another."""

    values: torch.Tensor  # max items of [Q, D] float32, flat
    max_sum: torch.Tensor  # max items of [Q, 2] float32, flat
    counter: torch.Tensor  # [1] int32: items fetched so far; zero between launches

    @classmethod
    def allocate(cls, max_num_seqs: int, layers: Sequence[AttentionLayer], device: torch.device) -> DecodeWorkspace:
        shapes = decode_workspace(max_num_seqs, layers)
        return cls(
            torch.empty(shapes["values"], dtype=torch.float32, device=device),
            torch.empty(shapes["max_sum"], dtype=torch.float32, device=device),
            torch.zeros(shapes["counter"], dtype=torch.int32, device=device),
        )


class AttentionMemory:
    """Layers that share block table and window share a plan. The pool arrives with `bind`."""

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        kv: KVLayout,
        limits: StepLimits,
        gpu: GPU,
        device: torch.device,
        dtype: KVDType | None = None,
    ) -> None:
        """dtype: that the model computes in; None: that of KV blocks."""
        self.dtype = dtype or kv.dtype
        self.gpu, self.device, self.layers, self.kv = gpu, device, layers, kv
        self.max_num_seqs, self.max_model_len = limits.max_num_seqs, limits.max_model_len
        self.short_chunk = limits.short_chunk
        self.pools: dict[AttentionLayer, LayerPool] = {}
        self.has_codes = kv.dtype in LARGEST_CODE
        self.calibrates = False
        self.sinks: dict[AttentionLayer, torch.Tensor] = {}  # of each layer that has some; filled before `bind`
        self._workspace: DecodeWorkspace | None = None
        keys = dict.fromkeys((layer.group, layer.window) for layer in layers)
        seqs, tokens = limits.max_num_seqs, limits.max_num_tokens
        self._plans = {key: AttentionPlan.allocate(seqs, tokens, device) for key in keys}

    @contextmanager
    def calibration(self) -> Iterator[None]:
        """Inside it, a step sets the scales of codes."""
        self.calibrates = True
        yield
        self.calibrates = False

    def bind(self, pool: torch.Tensor) -> None:
        """pool: the whole KV pool, 1-D uint8."""
        self.pools.update({layer: LayerPool.of(pool, self.kv, layer, self.sinks.get(layer)) for layer in self.layers})

    @property
    def workspace(self) -> DecodeWorkspace:
        """Allocated when it is first needed: hundreds of megabytes that only some backends use."""
        return self._workspace or self.reserve_workspace()

    def reserve_workspace(self) -> DecodeWorkspace:
        if self._workspace is None:
            self._workspace = DecodeWorkspace.allocate(self.max_num_seqs, self.layers, self.device)
        return self._workspace

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What is allocated."""
        room = self._workspace
        found = [] if room is None else [room.values, room.max_sum, room.counter]
        for plan in self._plans.values():
            found += [plan.totals, plan.items, plan.item_ranges, plan.tiles, plan.slots]
        return found

    def plan_of(self, layer: AttentionLayer) -> AttentionPlan:
        return self._plans[layer.group, layer.window]

    def make_plans(self, step: DeviceStep) -> None:
        for (group, window), plan in self._plans.items():
            make_plan(
                plan,
                query_start_loc=step.query_start_loc,
                seq_lens=step.seq_lens,
                positions=step.positions,
                rows=step.rows,
                block_table=step.block_tables[group],
                block_size=self.kv.block_size,
                window=window,
                decode_threshold=step.kind.decode_threshold,
                chained=self.gpu.chains,
            )
