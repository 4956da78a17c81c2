"""Copies of whole blocks, one launch per list, against copies one after another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.cache.kv_cache import KVCache
from octavo.request import Sequence
from tests.gpu.device import DEVICE, ON_GPU, needs_gpu
from tests.simulate import make_request

from octavo.cache.blocks import make_groups  # isort: skip
from octavo.kernels.cuda.step import Staging  # isort: skip
from octavo.kernels.triton.block_copies import copy_blocks, in_order  # isort: skip
from octavo.observe.event_log import EventLog  # isort: skip

SIZES = [16, 48, 8192, 8192 + 16, 3 * 16384 + 2064] + ([1 << 21] if ON_GPU else [])


def random_blocks(num: int, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, size), dtype=torch.uint8, generator=generator).to(DEVICE)


def one_by_one(blocks: torch.Tensor, source: list[int], target: list[int]) -> torch.Tensor:
    blocks = blocks.clone()
    for one, other in zip(source, target, strict=True):
        blocks[other] = blocks[one].clone()
    return blocks


def run(blocks: torch.Tensor, source: list[int], target: list[int], *, chained: bool = False) -> int:
    """As a model does -> the number of launches."""
    pairs = in_order(np.array(source, np.int32), np.array(target, np.int32))
    ids = Staging(DEVICE, 1 << 12).upload(pairs)
    for sources, targets in zip(ids[::2], ids[1::2], strict=True):
        copy_blocks(blocks, sources, targets, chained=chained)
    return len(ids) // 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chained", [False, True] if ON_GPU else [False])
def test_independent_copies_are_one_launch(size: int, chained: bool) -> None:
    num = 600 if ON_GPU else 12
    blocks = random_blocks(num, size, seed=size)
    order = np.random.default_rng(size).permutation(num).tolist()
    half = num // 2
    source, target = [order[i // 3] for i in range(half)], order[half:]  # three copies of each source
    expected = one_by_one(blocks, source, target)
    assert run(blocks, source, target, chained=chained) == 1
    assert torch.equal(blocks, expected)


@pytest.mark.parametrize("seed", range(200 if ON_GPU else 20))
def test_any_list_means_what_it_means_in_order(seed: int) -> None:
    """Chains both ways, targets written twice, blocks copied onto themselves."""
    rng = np.random.default_rng(seed)
    blocks = random_blocks(8, 4096, seed)
    source, target = rng.integers(0, 8, (2, int(rng.integers(1, 12)))).tolist()
    expected = one_by_one(blocks, source, target)
    run(blocks, source, target)
    assert torch.equal(blocks, expected)


@pytest.mark.parametrize(
    ("pairs", "launches"),
    [
        ([(1, 2), (1, 3), (4, 5)], [3]),
        ([(1, 2), (3, 1)], [1, 1]),  # written after it is read
        ([(1, 2), (2, 3)], [1, 1]),  # read after it is written
        ([(1, 2), (3, 2), (3, 4)], [1, 2]),
        ([(3, 8), (3, 9), (5, 6), (7, 3), (6, 4)], [3, 2]),
        ([(0, 0)], [1]),
    ],
)
def test_a_list_is_cut_where_order_matters(pairs: list[tuple[int, int]], launches: list[int]) -> None:
    source, target = np.array(pairs, np.int32).T
    parts = in_order(source, target)
    assert [len(part) for part in parts[::2]] == launches
    assert np.concatenate(parts[::2]).tolist() == source.tolist()
    assert np.concatenate(parts[1::2]).tolist() == target.tolist()


def test_the_cache_may_take_back_a_block_that_it_has_copied() -> None:
    """This is how chains arise: the first copy's owner is preempted, and its block is the next copy's target."""
    cache = KVCache(num_blocks=5, block_size=16, groups=make_groups((None,)), events=EventLog(0), clock=lambda: 0.0)
    sequences = [Sequence(i, make_request(str(i), [1, 2, 3]), 0, [1, 2, 3], row=i) for i in range(4)]
    first, child, other, its_child = sequences
    for parent in (first, other):
        cache.start(parent, cache.find_prefix(parent, 2))
        assert cache.grow(parent, 3)
        parent.num_computed_tokens = 3
    for parent, one in ((first, child), (other, its_child)):
        one.num_computed_tokens = 3
        cache.fork(parent, one)
        one.token_ids.append(4)
    assert cache.grow(child, 1)
    cache.free(first, "preempted")  # the source of the copy
    cache.free(child, "preempted")  # and its target
    assert cache.grow(its_child, 1)
    _, copies = cache.take_changes()
    (_, target), (_, next_target) = copies
    assert next_target in copies[0], f"{copies} has a chain"
    assert target != copies[1][0]


@needs_gpu
def test_copies_can_be_captured() -> None:
    blocks = random_blocks(64, 1 << 16, seed=0)
    source, target = (torch.arange(i * 32, (i + 1) * 32, dtype=torch.int32, device=DEVICE) for i in range(2))
    copy_blocks(blocks.clone(), source, target, chained=True)  # compiled before it is captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copy_blocks(blocks, source, target, chained=True)
        copy_blocks(blocks, target, source + 0, chained=True)
    blocks.copy_(random_blocks(64, 1 << 16, seed=1))
    expected = blocks[:32].clone()
    graph.replay()
    assert torch.equal(blocks[32:], expected)
    assert torch.equal(blocks[:32], expected)
