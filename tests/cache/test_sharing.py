"""What sequences share now, against tables whose figures can be counted on paper."""

from __future__ import annotations

import random

import pytest

from octavo.cache.sharing import Sharing, sharing_of
from tests.simulate import Simulator, make_request


def now(simulator: Simulator) -> Sharing:
    return sharing_of(simulator.cache, simulator.scheduler.sequences)


def test_samples_hold_and_read_their_prompt_once() -> None:
    """A prompt of 10 tokens, blocks of 4: 2 full blocks stay shared, the third is copied by all but one."""
    simulator = Simulator(block_size=4, enable_prefix_caching=False)
    simulator.add(make_request("a", list(range(10)), n=3, max_tokens=8))
    simulator.step()
    assert now(simulator) == Sharing(3, 9, 10, 30)  # forked, and nobody has written yet
    simulator.step()
    assert now(simulator) == Sharing(2 + 3, 9, 8 + 3 * 3, 33)


def test_separate_requests_share_nothing_unless_the_prefix_cache_finds_it() -> None:
    for is_cached, expected in ((False, Sharing(6, 6, 20, 20)), (True, Sharing(4, 6, 12, 20))):
        simulator = Simulator(block_size=4, enable_prefix_caching=is_cached)
        for name in "ab":
            simulator.add(make_request(name, list(range(10)), max_tokens=8))
        simulator.step()
        assert now(simulator) == expected


def test_a_window_limits_what_is_read() -> None:
    simulator = Simulator(block_size=4, windows=(None, 6), enable_prefix_caching=False)
    simulator.add(make_request("a", list(range(10)), n=2, max_tokens=8))
    simulator.step()
    assert (now(simulator).num_slots_read, now(simulator).num_slots_read_unshared) == (16, 32)


@pytest.mark.parametrize("windows", [(None,), (None, 20)])
@pytest.mark.parametrize("is_cached", [False, True])
def test_it_agrees_with_counting_every_block(windows: tuple[int | None, ...], is_cached: bool) -> None:
    rng = random.Random(5)
    simulator = Simulator(num_blocks=60, block_size=4, windows=windows, enable_prefix_caching=is_cached)
    for index in range(12):
        prompt = [7] * rng.randint(1, 20) + [index] * rng.randint(1, 12)
        simulator.add(make_request(f"{index}", prompt, n=rng.randint(1, 4), max_tokens=rng.randint(1, 30)))
    while simulator.scheduler.has_unfinished:
        simulator.step()
        assert now(simulator) == counted(simulator)
    assert now(simulator) == Sharing(0, 0, 0, 0)


def counted(simulator: Simulator) -> Sharing:
    """Slot by slot."""
    cache, held, slots = simulator.cache, [], []
    for sequence in simulator.scheduler.sequences:
        tables, end = cache.tables.get(sequence.sequence_id), sequence.num_computed_tokens
        for group, table in zip(cache.groups, tables.block_ids if tables else (), strict=bool(tables)):
            held += [block_id for block_id in table if block_id]
            begin = max(0, end - group.window) if group.window else 0
            slots += [(table[position // 4], position % 4) for position in range(begin, end) if table]
    return Sharing(len(set(held)), len(held), len(set(slots)), len(slots))
