"""Answers that repeat themselves: found by counts, as by comparing all patterns anew, and ended."""

import random

import pytest

from octavo import RepetitionDetectionParams, SamplingParams
from octavo.repetition import RepeatCounts
from tests import fake_executor
from tests.simulate import Simulator, make_request


def repeats(output, largest, smallest, count):
    """The definition: some pattern ends the output, count times in a row."""
    return any(
        size * count <= len(output) and output[-size * count :] == output[-size:] * count
        for size in range(max(smallest, 1), largest + 1)
    )


def test_counts_find_what_the_definition_says():
    draw, num_found = random.Random(3), 0
    for _ in range(400):
        largest = draw.randint(1, 6)
        smallest, count = draw.randint(0, largest), draw.randint(2, 4)
        asked = RepetitionDetectionParams(max_pattern_size=largest, min_pattern_size=smallest, min_count=count)
        begin = draw.randint(0, 5)
        token_ids, counts = [7] * begin, RepeatCounts(asked, begin)
        motif = [draw.randint(6, 8) for _ in range(draw.randint(1, 6))]
        for place in range(30):
            token_ids.append(draw.randint(6, 8) if draw.random() < 0.1 else motif[place % len(motif)])
            found = counts.ends_with(token_ids)
            assert found == repeats(token_ids[begin:], largest, smallest, count), (asked, token_ids, begin)
            num_found += found
    assert num_found > 500


@pytest.mark.parametrize("others", [{}, {"min_tokens": 9}, {"n": 3}, {"stop_token_ids": [7]}])
def test_a_sequence_ends_where_it_repeats_itself(others, monkeypatch):
    """Beside one that may go on, and in the plain steps after it."""
    monkeypatch.setattr(fake_executor._Row, "next_token", lambda _, num_tokens: 5 + num_tokens % 3)
    simulator = Simulator()
    loops = {"max_pattern_size": 4, "min_count": 2}
    watched = make_request("a", [1] * 4, max_tokens=12, repetition_detection=loops, **others)
    free = make_request("b", [1] * 4, max_tokens=12)
    simulator.add(watched, free)
    simulator.run()
    expected = ("stop", 7, 2) if "stop_token_ids" in others else ("repetition", "repetition_detected", 6)
    if "min_tokens" in others:
        expected = (*expected[:2], 9)
    ends = [(one.finish_reason, one.stop_reason, one.num_output_tokens) for one in watched.sequences]
    assert ends == [expected] * others.get("n", 1)
    assert [(one.finish_reason, one.num_output_tokens) for one in free.sequences] == [("length", 12)]


def test_what_looks_for_nothing_is_none():
    for nothing in ({}, RepetitionDetectionParams(), {"max_pattern_size": 0, "min_count": 1}, None):
        assert SamplingParams(repetition_detection=nothing).repetition_detection is None
