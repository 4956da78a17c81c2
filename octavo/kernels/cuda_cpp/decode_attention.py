"""Allocates, describes and launches the plan and the kernel of csrc/cuda/decode_attention.cu."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from ctypes import Structure, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.shape import (
    BOX_TOKENS,
    Occupancy,
    Shape,
    max_part_rows,
    partial_shapes,
    plan_shapes,
)
from octavo.kernels.ops import AttentionLayer
from octavo.kernels.triton.attention.memory import LayerPool
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform

PLAN_THREADS, THREADS = 1024, 160
_LOG2_E = math.log2(math.e)


class _Plan(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("totals", "stretch_units", "units", "members", "paths"))


class _PlanStep(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("query_start_loc", "seq_lens", "rows", "block_table")),
        ("table_stride", c_int64),
        *(
            (name, c_int)
            for name in (
                "num_seqs", "max_queries", "tile_queries", "members_in_tile", "block_size", "window", "num_stretches",
                "shares", "fixed_part",
            )
        ),
    )  # fmt: skip


class _Launch(Structure):
    _fields_ = (
        ("plan", _Plan),
        *(
            (name, c_void_p)
            for name in (
                "q", "out", "pool", "block_table", "part_values", "part_max_sum", "done",
                "q_norm", "k_norm", "cos", "sin",
            )
        ),
        *((name, c_int64) for name in ("q_stride", "out_stride", "table_stride", "block_stride", "value_offset")),
        *((name, c_int) for name in ("layer_row", "block_rows", "num_kv_heads", "num_stretches", "window")),
        *((name, c_float) for name in ("scale_log2", "softcap_log2", "eps")),
        ("hooks", c_void_p * 4),
    )  # fmt: skip


#: For csrc/cuda/attention_plan.cu, in tokens of an unshared sequence. Costs, by which it decides what to share: to
#: start a unit, for each member that shares it, and for each box of 16 tokens, on top of those 16, when all rows are in
#: use. Lengths, by which it balances: of a unit's start, and of each member. Measured on an H200: with these costs no
#: shared prefix was slower than private reads, and with these lengths shared ones took within 15 % of their best time.
#: Without the four-warp products, a box with all rows took 2 to 2.2 times as long as one with few.
HOPPER_COSTS = {"UNIT_COST": 64, "MEMBER_COST": 96, "WIDE_COST": 0, "UNIT_LENGTH": 112, "MEMBER_LENGTH": 48}
OTHER_COSTS = {"UNIT_COST": 64, "MEMBER_COST": 96, "WIDE_COST": 14, "UNIT_LENGTH": 64, "MEMBER_LENGTH": 96}
SMALL_PLAN = 256  # sequences; up to this many, fewer threads are faster


def compile_plan(num_seqs: int, gpu: GPU, costs: Mapping[str, int] | None = None) -> tuple[bytes, int]:
    """The kernel that plans for up to num_seqs sequences, and its number of threads. costs: by default those measured
    for this type of GPU."""
    costs = costs or (HOPPER_COSTS if gpu.capability[0] == 9 else OTHER_COSTS)
    threads = 256 if num_seqs <= SMALL_PLAN else 1024
    return compile_kernel("attention_plan", {"THREADS": threads, **costs}, gpu.capability), threads


class SharedPlan:
    """A plan's memory, and the kernel that makes it.

    fixed_part: cut every sequence into parts of this many tokens; the result of one that shares nothing then does not
    depend on its batch. max_num_tokens: of all sequences together, needed only with fixed_part.
    """

    def __init__(
        self, shape: Shape, max_num_seqs: int, num_stretches: int, gpu: GPU, device: torch.device, *,
        fixed_part: int = 0, max_num_tokens: int = 0, costs: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.shape, self.num_stretches, self.fixed_part = shape, num_stretches, fixed_part
        seqs = max_num_seqs * shape.query_tiles
        stretches = num_stretches
        if fixed_part:
            stretches += seqs + max_num_tokens * shape.query_tiles // fixed_part
        shapes = plan_shapes(seqs, stretches).values()
        self.arrays = [torch.zeros(shape, dtype=torch.int32, device=device) for shape in shapes]
        self.totals, self.stretch_units, self.units, self.members, self.paths = self.arrays
        self.struct = _Plan(*(array.data_ptr() for array in self.arrays))
        cubin, self._threads = compile_plan(seqs, gpu, costs)
        self._kernel = Kernel(cubin, "octavo_attention_plan")
        self._shared_bytes = (1 << max(1, (seqs - 1).bit_length())) * 8 + seqs * 4 * 8
        self._kernel.allow_shared(self._shared_bytes)

    def max_part_rows(self) -> int:
        """The most partial results: one for each member of a unit, and more for units that are cut."""
        return max_part_rows(self.shape, len(self.paths), len(self.stretch_units))

    def make(
        self, *, query_start_loc: torch.Tensor, seq_lens: torch.Tensor, rows: torch.Tensor, block_table: torch.Tensor,
        block_size: int, window: int | None, shares: bool, chained: bool,
    ) -> None:  # fmt: skip
        shape = self.shape
        arrays = (query_start_loc, seq_lens, rows, block_table)
        step = _PlanStep(
            *(array.data_ptr() for array in arrays), block_table.stride(0), len(seq_lens), shape.max_queries,
            shape.tile_queries, shape.members_in_tile, block_size, window or 0, self.num_stretches,
            int(shares and window is None and shape.query_tiles == 1 and shape.members_in_tile > 1), self.fixed_part,
        )  # fmt: skip
        stream = torch.cuda.current_stream().cuda_stream
        self._kernel.launch(
            1, self._threads, (step, self.struct), shared_bytes=self._shared_bytes, stream=stream, chained=chained
        )


@dataclass(frozen=True, slots=True, eq=False)
class Partials:
    """Memory for partial results until they are joined. Layers share it, since they run one after another."""

    values: torch.Tensor
    max_sum: torch.Tensor
    done: torch.Tensor

    @classmethod
    def allocate(cls, part_rows: int, num_seqs: int, shape: Shape, head_dim: int, device: torch.device) -> Partials:
        shapes = partial_shapes(part_rows, num_seqs, shape, head_dim)
        return cls(
            torch.empty(shapes["values"], dtype=torch.float32, device=device),
            torch.empty(shapes["max_sum"], dtype=torch.float32, device=device),
            torch.zeros(shapes["done"], dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True)
class Kind:
    """What the kernel is compiled for. is_fused: q is the projection's output, and the kernel writes the new keys and
    values to the cache; otherwise q is already normed and rotated, and the cache up to date."""

    head_dim: int
    shape: Shape
    dtype: torch.dtype
    block_size: int
    has_window: bool
    has_softcap: bool
    is_fused: bool
    rotary_dim: int
    has_norm: bool

    @classmethod
    def of(
        cls, layer: AttentionLayer, dtype: torch.dtype, block_size: int, is_fused: bool, max_queries: int = 1
    ) -> Kind:
        return cls(
            layer.head_dim, Shape.of(layer, max_queries), dtype, block_size, layer.window is not None,
            layer.softcap is not None, is_fused,
            layer.rotary.rotary_dim if is_fused and layer.rotary is not None else 0,
            is_fused and layer.q_norm is not None,
        )  # fmt: skip

    def compile(self, gpu: GPU, *, has_copy_engine: bool | None = None, source: Path | None = None) -> bytes:
        """has_copy_engine: use Hopper's copy engine; by default wherever there is one. source: a file that includes the
        kernel and defines its own hooks (csrc/cuda/hooks.cuh)."""
        occupancy = Occupancy.of(self.shape, self.head_dim, gpu.capability)
        assert occupancy is not None, "a layer that does not fit is not compiled"
        copies = gpu.capability >= (9, 0) if has_copy_engine is None else has_copy_engine
        macros = {
            "HEAD_DIM": self.head_dim,
            "GROUP": self.shape.group,
            "BLOCK_SIZE": self.block_size,
            "ELEMENT": "Fp16" if self.dtype == torch.float16 else "Bf16",
            "MAX_QUERIES": self.shape.max_queries,
            "HAS_WINDOW": int(self.has_window),
            "HAS_SOFTCAP": int(self.has_softcap),
            "IS_FUSED": int(self.is_fused),
            "ROTARY_DIM": self.rotary_dim,
            "HAS_NORM": int(self.has_norm),
            "IS_CHAINED": int(gpu.chains),
            "HAS_COPY_ENGINE": int(copies),
            "HAS_WGMMA": int(copies and gpu.capability[0] == 9),
            "RING_ENTRIES": occupancy.entries,
            "BLOCKS_PER_MULTIPROCESSOR": occupancy.blocks,
        }
        return compile_kernel("decode_attention", macros, gpu.capability, source)


class DecodeAttention:
    """The kernel for layers of one kind. source: see `Kind.compile`; hooks: the addresses that its hooks hold."""

    def __init__(
        self, kind: Kind, gpu: GPU, *, has_copy_engine: bool | None = None, source: Path | None = None,
        hooks: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._chained = gpu.chains
        self._hooks = (c_void_p * 4)(*hooks)
        cubin = kind.compile(gpu, has_copy_engine=has_copy_engine, source=source)
        self._kernel = Kernel(cubin, "octavo_decode_attention")
        self._shared_bytes = self._kernel.number("octavo_shared_bytes")
        self._kernel.allow_shared(self._shared_bytes)

    def run(
        self, q: torch.Tensor, out: torch.Tensor, layer: AttentionLayer, pool: LayerPool, plan: SharedPlan,
        partials: Partials, *, block_table: torch.Tensor, transform: HeadTransform | None,
    ) -> None:  # fmt: skip
        """Write those rows of `out` [T, Q * D] that belong to decoding sequences. `q` and `transform`: see `Kind`."""
        heads = transform if transform is not None else HeadTransform.none(q)
        arrays = (
            q, out, pool.data, block_table, partials.values, partials.max_sum, partials.done,
            heads.q_norm, heads.k_norm, heads.cos, heads.sin,
        )  # fmt: skip
        launch = _Launch(
            plan.struct, *(array.data_ptr() for array in arrays), q.stride(0), out.stride(0), block_table.stride(0),
            pool.block_stride, pool.value_offset, pool.layer_row, pool.block_stride // layer.head_dim,
            layer.num_kv_heads, plan.num_stretches, layer.window or 0, layer.scale * _LOG2_E,
            (layer.softcap or 0.0) * _LOG2_E, heads.eps, self._hooks,
        )  # fmt: skip
        rows = pool.rows
        tensor_map = _map_of(rows.base.data_ptr(), rows.shape[0], layer.head_dim, q.dtype == torch.float16)
        self._kernel.launch(
            plan.num_stretches * layer.num_kv_heads, THREADS, (launch, tensor_map), shared_bytes=self._shared_bytes,
            stream=torch.cuda.current_stream().cuda_stream, chained=self._chained,
        )  # fmt: skip


@lru_cache(maxsize=64)
def _map_of(address: int, num_rows: int, dim: int, is_half: bool) -> TensorMap:
    return TensorMap.of_rows(address, num_rows, dim, is_half=is_half, box_rows=BOX_TOKENS, box_dim=64)
