"""Allocates, describes and launches the plan of csrc/cuda/attention_plan.cu: which blocks are read once for several."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import Structure, c_int, c_int64, c_void_p

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.module import Kernel
from octavo.kernels.cuda_cpp.shape import Shape, max_part_rows, plan_shapes


class PlanArrays(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("totals", "stretches", "units", "members", "paths"))


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


#: For csrc/cuda/attention_plan.cu, in tokens of an unshared sequence. Costs, by which it decides what to share: to
#: start a unit, for each member that shares it, and for each box of 16 tokens, on top of those 16, when all rows are in
#: use. Lengths, by which it balances: of a unit's start, and of each member. Measured on an H200, over codes too, which
#: the four-warp products cannot read (benchmarks/results/2026-11-30-quantised-gpu.md). Elsewhere a box with all rows
#: took 2 to 2.2 times as long as one with few.
HOPPER_COSTS = {"UNIT_COST": 64, "MEMBER_COST": 96, "WIDE_COST": 8, "UNIT_LENGTH": 256, "MEMBER_LENGTH": 48}
HOPPER_CODES_COSTS = {**HOPPER_COSTS, "WIDE_COST": 32}
OTHER_COSTS = {"UNIT_COST": 64, "MEMBER_COST": 96, "WIDE_COST": 14, "UNIT_LENGTH": 64, "MEMBER_LENGTH": 96}
SMALL_PLAN = 256  # sequences; up to this many, fewer threads are faster


def plan_costs(gpu: GPU, *, has_codes: bool) -> Mapping[str, int]:
    """Those measured for this type of GPU."""
    if gpu.capability[0] != 9:
        return OTHER_COSTS
    return HOPPER_CODES_COSTS if has_codes else HOPPER_COSTS


def compile_plan(num_seqs: int, gpu: GPU, costs: Mapping[str, int]) -> tuple[bytes, int]:
    """The kernel that plans for up to num_seqs sequences, and its number of threads."""
    threads = 256 if num_seqs <= SMALL_PLAN else 1024
    return compile_kernel("attention_plan", {"THREADS": threads, **costs}, gpu.capability), threads


class SharedPlan:
    """A plan's memory, and the kernel that makes it.

    shares: look for blocks that several sequences share. fixed_part: cut every sequence into parts of this many tokens;
    the result of one that shares nothing then does not depend on its batch. max_num_tokens: of all sequences together,
    needed only with fixed_part. has_codes: of the cache. costs: others than those of this type of GPU.
    """

    def __init__(
        self, shape: Shape, max_num_seqs: int, num_stretches: int, gpu: GPU, device: torch.device, *,
        shares: bool = True, fixed_part: int = 0, max_num_tokens: int = 0, has_codes: bool = False,
        costs: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.shape, self.num_stretches, self.fixed_part = shape, num_stretches, fixed_part
        self._shares = shares and shape.can_share
        seqs = max_num_seqs * shape.query_tiles
        stretches = num_stretches
        if fixed_part:
            stretches += seqs + max_num_tokens * shape.query_tiles // fixed_part
        shapes = plan_shapes(seqs, stretches).values()
        self.arrays = [torch.zeros(shape, dtype=torch.int32, device=device) for shape in shapes]
        self.totals, self.stretches, self.units, self.members, self.paths = self.arrays
        self.struct = PlanArrays(*(array.data_ptr() for array in self.arrays))
        cubin, self._threads = compile_plan(seqs, gpu, costs or plan_costs(gpu, has_codes=has_codes))
        self._kernel = Kernel(cubin, "octavo_attention_plan")
        self._shared_bytes = (1 << max(1, (seqs - 1).bit_length())) * 8 + seqs * 4 * 8
        self._kernel.allow_shared(self._shared_bytes)

    def max_part_rows(self) -> int:
        return max_part_rows(self.shape, len(self.paths), len(self.stretches), shares=self._shares)

    def make(
        self, *, query_start_loc: torch.Tensor, seq_lens: torch.Tensor, rows: torch.Tensor, block_table: torch.Tensor,
        block_size: int, window: int | None, chained: bool,
    ) -> None:  # fmt: skip
        shape = self.shape
        arrays = (query_start_loc, seq_lens, rows, block_table)
        step = _PlanStep(
            *(array.data_ptr() for array in arrays), block_table.stride(0), len(seq_lens), shape.max_queries,
            shape.tile_queries, shape.members_in_tile, block_size, window or 0, self.num_stretches,
            int(self._shares and window is None), self.fixed_part,
        )  # fmt: skip
        stream = torch.cuda.current_stream().cuda_stream
        self._kernel.launch(
            1, self._threads, (step, self.struct), shared_bytes=self._shared_bytes, stream=stream, chained=chained
        )
