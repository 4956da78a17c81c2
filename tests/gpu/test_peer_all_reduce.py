"""Sums over peer memory: exact, the same bits on all GPUs, in graphs, and with the norm the same as the plain ops."""

from __future__ import annotations

from hashlib import sha256
from itertools import product

import pytest
import torch

from octavo.distributed.collectives import Collectives
from octavo.kernels.cuda import sizes
from octavo.kernels.cuda.driver import GPU, find_gpu
from octavo.kernels.cuda.rank_sums import RankSums
from octavo.kernels.cuda_cpp.compile import find_nvcc
from octavo.kernels.triton.elementwise import norm
from tests.gpu.device import TOLERANCE, relative_error
from tests.gpu.gpu_ranks import on_all_gpus

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.skipif(find_nvcc() is None, reason="there is no nvcc"),
]
COUNTS = [count for count in (2, 4, 8) if count <= torch.cuda.device_count()]
EPS = 1e-6
WIDTHS = {torch.float32: (64, 4096), torch.bfloat16: (64, 1000, 4096, 8192), torch.float16: (128, 5120)}
#: of the last, each thread block sends rows while it adds up earlier ones
ROWS = (1, 2, 7, 64, 256, 700, 3000)
CASES = [
    (dtype, width, rows)
    for dtype in WIDTHS
    for width, rows in product(WIDTHS[dtype], ROWS)
    if width * rows <= 3000 * 4096
]
#: ranks, and the largest message at once; two ranks exchange larger ones in pieces
CALLS = [(count, sizes.PEER_BYTES) for count in COUNTS] + [(2, sizes.MOST_PEER_BYTES)]
Sums = dict[torch.dtype, RankSums]


def summands(size: int, dtype: torch.dtype, rows: int, width: int, device: torch.device) -> list[torch.Tensor]:
    """Of all ranks; each has some NaNs and infinities."""
    made = []
    for rank in range(size):
        generator = torch.Generator().manual_seed(1000 * rank + rows + width)
        x = torch.randn(rows, width, generator=generator).to(dtype)
        if rank == 1:
            x.view(-1)[[3, -1]] = torch.tensor([float("inf"), float("-inf")], dtype=dtype)
            x.view(torch.uint8).view(-1)[8 * x.element_size() : 9 * x.element_size()] = 255
        made.append(x.to(device))
    return made


def total(parts: list[torch.Tensor]) -> torch.Tensor:
    """The exact result: float32 in the order of ranks, rounded once."""
    found = parts[0].float()
    for part in parts[1:]:
        found = found + part.float()
    return found.to(parts[0].dtype)


def rank_sums(
    ranks: Collectives, device: torch.device, dtype: torch.dtype, most_bytes: int = sizes.PEER_BYTES
) -> RankSums:
    gpu = find_gpu(ranks.rank)
    assert isinstance(gpu, GPU)
    sums = RankSums(ranks, dtype, gpu, device, most_bytes)
    assert ranks.link.startswith("peer memory"), ranks.link
    ranks.link = "NCCL"
    return sums


def bits(x: torch.Tensor) -> bytes:
    return sha256(x.cpu().view(torch.uint8).numpy().tobytes()).digest()


def is_exact(ranks: Collectives, x: torch.Tensor) -> bool:
    """Whether peer memory carries it."""
    return ranks.size == 2 or x.nbytes <= sizes.PEER_BYTES


def run_sums(ranks: Collectives, device: torch.device, most_bytes: int) -> list[bytes]:
    """The results' bits."""
    sums = {dtype: rank_sums(ranks, device, dtype, most_bytes) for dtype in WIDTHS}
    found = []
    for dtype, width, rows in CASES:
        parts = summands(ranks.size, dtype, rows, width, device)
        x = parts[ranks.rank].clone()
        sums[dtype].all_reduce(x)
        expected = total(parts)
        if is_exact(ranks, x):
            assert torch.equal(x.nan_to_num(7), expected.nan_to_num(7)), (dtype, width, rows)
        finite = expected.isfinite() & x.isfinite()
        assert finite.float().mean() > 0.9
        assert relative_error(x[finite], expected[finite]) < TOLERANCE[dtype]
        found.append(bits(x.nan_to_num(7)))
    return found


@pytest.mark.parametrize(("count", "most_bytes"), CALLS)
def test_sums_are_exact_and_the_same_on_all(count: int, most_bytes: int) -> None:
    first, *others = on_all_gpus(count, run_sums, most_bytes)
    assert all(other == first for other in others)


def run_norms(ranks: Collectives, device: torch.device, most_bytes: int) -> list[bytes]:
    sums = {dtype: rank_sums(ranks, device, dtype, most_bytes) for dtype in WIDTHS}
    found = []
    for dtype, width, rows in CASES:
        parts = [part.nan_to_num(1, 1, 1) for part in summands(ranks.size, dtype, rows, width, device)]
        generator = torch.Generator().manual_seed(width)
        weight = torch.rand(width, generator=generator).to(device)
        residual = torch.randn(rows, width, generator=generator).to(device, dtype)
        x, fused_residual, plain, plain_residual = parts[ranks.rank].clone(), residual.clone(), total(parts), residual
        sums[dtype].prepare_norm(width)
        sums[dtype].add_rms_norm(x, fused_residual, weight, EPS, x)
        norm.add_rms_norm(plain, plain_residual, weight, EPS, plain)
        if is_exact(ranks, x):
            assert torch.equal(fused_residual, plain_residual), (dtype, width, rows)
        assert relative_error(x, plain) < TOLERANCE[dtype], (dtype, width, rows)
        found += [bits(x), bits(fused_residual)]
    return found


@pytest.mark.parametrize(("count", "most_bytes"), CALLS)
def test_the_norm_in_the_same_kernel(count: int, most_bytes: int) -> None:
    first, *others = on_all_gpus(count, run_norms, most_bytes)
    assert all(other == first for other in others)


def run_graphs(ranks: Collectives, device: torch.device) -> int:
    """Two graphs of an odd number of calls of different sizes, replayed in turns with calls outside of graphs; the
    number of elements that were ever wrong."""
    sums = rank_sums(ranks, device, torch.bfloat16)
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    shapes = [(1, 4096), (600 if ranks.size == 2 else 256, 4096), (33, 8192), (3, 64), (256, 1024)]
    cases = []
    for rows, width in shapes:
        parts = [part.nan_to_num(1, 1, 1) for part in summands(ranks.size, torch.bfloat16, rows, width, device)]
        own = parts[ranks.rank]
        cases.append((own, torch.empty_like(own), total(parts)))

    def call(which: int) -> None:
        own, x, expected = cases[which]
        x.copy_(own)
        sums.all_reduce(x)
        wrong.add_((x != expected).sum())

    graphs = []
    for sequence in ((0, 2, 4, 0, 3), (3, 3, 1, 2, 0, 0, 4)):
        for which in sequence:
            call(which)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for which in sequence:
                call(which)
        graphs.append(graph)
    for turn in range(500):
        graphs[turn % 2].replay()
        if turn % 7 == 0:
            call(0)
        graphs[turn * 3 // 2 % 2].replay()
    return int(wrong)


@pytest.mark.parametrize("count", COUNTS)
def test_a_thousand_replays(count: int) -> None:
    assert on_all_gpus(count, run_graphs) == [0] * count


def run_switched_off(ranks: Collectives, device: torch.device) -> bool:
    gpu = find_gpu(ranks.rank)
    assert isinstance(gpu, GPU)
    sums = RankSums(ranks, torch.float32, gpu, device, 0)
    x = torch.full((4, 64), float(ranks.rank), device=device)
    sums.all_reduce(x)
    return bool(x.eq(sum(range(ranks.size))).all()) and "disable_custom_all_reduce is set" in ranks.link


def test_without_peer_memory_nccl_does_it() -> None:
    assert on_all_gpus(2, run_switched_off) == [True] * 2
