"""Timing on a GPU: calls captured in one graph, replayed and timed by device events; and the card's limits."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import torch

from octavo.kernels.cuda.model import TritonModel
from octavo.kernels.cuda.step import DeviceStep, StepKind, slots_of
from octavo.kernels.device import StepBatch
from octavo.kernels.triton.packed_blocks import gather_blocks, scatter_blocks

Call = Callable[[], object]


def graph_time_us(calls: Sequence[Call], repeats: int = 7) -> float:
    """Median microseconds per call. Calls over distinct buffers of several times the L2's size time memory instead of
    the cache."""
    graph = capture(calls)
    inner = max(1, 40 // len(calls))
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(inner):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (inner * len(calls)))
    return statistics.median(times[1:])


def step_time_us(model: TritonModel, batch: StepBatch, repeats: int = 7) -> float:
    """Microseconds of a step up to its hidden states."""
    arrays = (batch.input_ids, batch.positions, batch.query_start_loc, batch.seq_lens, batch.rows, *batch.block_tables)
    input_ids, positions, starts, seq_lens, rows, *tables = (torch.from_numpy(one).to(model.device) for one in arrays)
    kind = StepKind.of(batch, model.short_chunk)
    step = DeviceStep(input_ids, positions, starts, seq_lens, rows, tuple(tables), kind)
    if model.row_adapters is not None:
        step = replace(step, adapters=torch.from_numpy(slots_of(batch)).to(model.device))
    return graph_time_us([lambda: model.run_chunks(step)], repeats)


def move_time_us(move: str, block_bytes: int, count: int) -> float:
    """Microseconds in which so many blocks are gathered from all over a pool (gather_blocks), or scattered there."""
    num_copies = copies_past_cache(block_bytes * count)
    blocks = torch.zeros((num_copies * count, block_bytes), dtype=torch.uint8, device="cuda")
    packed = torch.zeros((num_copies, count, block_bytes), dtype=torch.uint8, device="cuda")
    ids = torch.randperm(len(blocks), device="cuda").to(torch.int32).view(num_copies, count)
    if move == "gather_blocks":
        return graph_time_us([partial(gather_blocks, blocks, ids[one], packed[one]) for one in range(num_copies)])
    return graph_time_us([partial(scatter_blocks, packed[one], ids[one], blocks) for one in range(num_copies)])


def capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def copies_past_cache(num_bytes: int, most: int = 64) -> int:
    """The number of distinct buffers of this size that evict the first from the cache."""
    return max(2, min(most, -(-300_000_000 // num_bytes)))


@cache
def measured_limits() -> tuple[float, float]:
    """The card's bytes/s of a long copy, read and written, and FLOP/s of a large product in bfloat16."""
    big = torch.randn(1 << 31, device="cuda", dtype=torch.bfloat16)
    copy = torch.empty_like(big)
    copy_us = eager_time_us(lambda: copy.copy_(big))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    matmul_us = eager_time_us(lambda: a @ b)
    return big.nbytes * 2 / copy_us * 1e6, 2 * 8192**3 / matmul_us * 1e6


def print_machine() -> None:
    """The card's name, memory bandwidth and matrix throughput."""
    copied, multiplied = measured_limits()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copy {copied / 1e12:.2f} TB/s, "
        f"bf16 product {multiplied / 1e12:.0f} TFLOP/s"
    )


def eager_time_us(call: Call) -> float:
    """Median microseconds of a long call, launched without a graph."""
    times = []
    for _ in range(9):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times[2:])
