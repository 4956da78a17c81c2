"""Buckets as Prometheus counts them, and token gaps against a record of every sequence separately."""

import random

import pytest

from octavo.observe.catalog import HISTOGRAMS, bounds
from octavo.observe.lives import SizeCounts, TokenGaps


def buckets(histogram: SizeCounts) -> dict[str, int]:
    return {label[0][1]: int(number) for name, label, number in histogram.samples() if name == "_bucket"}


def test_a_value_at_a_bound_belongs_to_it() -> None:
    histogram = SizeCounts([1, 2.5])
    for value in (0.5, 1, 1.1, 2.5, 2.6):
        histogram.observe(value)
    histogram.observe(100, 3)
    assert buckets(histogram) == {"1.0": 2, "2.5": 4, "+Inf": 8}
    assert histogram.total == pytest.approx(0.5 + 1 + 1.1 + 2.5 + 2.6 + 300)


@pytest.mark.parametrize("seed", range(20))
def test_gaps_are_those_of_every_sequence(seed: int) -> None:
    """Sequences start, pause, resume and end, each with or without a token in that step."""
    draw = random.Random(seed)
    histogram = SizeCounts([])
    gaps = TokenGaps(histogram)
    last: dict[int, float] = {}
    expected: list[float] = []
    live, next_id, time = set(range(6)), 6, 0.0
    for _ in range(200):
        time += draw.choice([0.5, 1.0, 7.0])
        if draw.random() < 0.3:
            live.add(next_id)
            next_id += 1
        present = draw.random()
        sampled = tuple(sorted(one for one in live if present < 0.5 or draw.random() < 0.7))
        for one in [one for one in live if draw.random() < 0.05]:
            live.remove(one)
            gaps.ended(one)  # before the step is counted, in the scheduler's order
        expected += [time - last[one] for one in sampled if one in last]
        last.update(dict.fromkeys(sampled, time))
        gaps.step(sampled, time)
    assert histogram.counts == [len(expected)]
    assert histogram.total == pytest.approx(sum(expected))


def test_gaps_forget_sequences_that_ended() -> None:
    gaps = TokenGaps(SizeCounts([]))
    for step in range(1000):
        gaps.ended(step)
        gaps.step((step, step + 1), float(step))
        gaps.ended(100_000 + step)  # never got a token
    held = [value for value in vars(gaps).values() if isinstance(value, set | dict)]
    assert sum(len(one) for one in held) < 10


def test_every_histogram_has_rising_bounds() -> None:
    chosen = bounds(max_model_len=3000)
    assert set(chosen) == set(HISTOGRAMS)
    for name, values in chosen.items():
        assert list(values) == sorted(set(values)), name
    assert chosen["request_prompt_tokens"][-1] == 2000
