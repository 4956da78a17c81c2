"""What sharing saves, counted with the real scheduler and block tables."""

from __future__ import annotations

import random
import re

import pytest

from octavo.bench.sharing import DATASETS, PAPER, PAPER_COUNTS, PAPER_OF_BEAMS, count_saving, table
from octavo.bench.sharing_plot import NOTE, draw
from octavo.bench.sharing_time import step_seconds
from octavo.bench.workloads import Work
from octavo.errors import ConfigError
from octavo.observe.events import StepDone
from octavo.pictures.chart import page
from octavo.pictures.picture import svg


def test_a_saving_that_can_be_counted_on_paper() -> None:
    """A prompt of 8 tokens and 3 new ones in blocks of 4, two samples: 2 shared blocks, and 1 each from the second step
    on. The third token is drawn by the last of three steps."""
    one = count_saving("Alpaca", [Work(tuple(range(8)), 1, 3)], 2, 4)
    assert one.num_steps == 3
    assert (one.num_blocks, one.num_unshared_blocks) == (2 + 4 + 4, 4 + 6 + 6)
    assert (one.num_slots_read, one.num_slots_read_unshared) == (8 + 10 + 12, 16 + 18 + 20)
    assert one.memory_saved == 1 - 10 / 16


def test_unshared_is_what_separate_requests_hold() -> None:
    works = [Work(tuple(range(length)), 1, 20) for length in (5, 16, 40, 41)]
    samples = count_saving("Alpaca", works, 3, 16)
    requests = count_saving("Alpaca", [work for work in works for _ in range(3)], 1, 16)
    assert samples.num_unshared_blocks == requests.num_unshared_blocks == requests.num_blocks
    assert samples.num_slots_read_unshared == requests.num_slots_read
    assert requests.memory_saved == requests.reads_saved == 0


def test_the_papers_range_is_met() -> None:
    """Within 4 points: the lengths are drawn, not the data sets'."""
    for dataset, ends in PAPER.items():
        rng = random.Random(0)
        workload = [DATASETS[dataset].draw(rng) for _ in range(40)]
        found = [100 * count_saving(dataset, workload, n, 16).memory_saved for n in PAPER_COUNTS]
        assert (min(found), max(found)) == pytest.approx(ends, abs=4)


def test_beams_come_near_the_papers_range() -> None:
    """Their candidates are made up. The least saving is within 4 points, the largest is more."""
    for dataset, (low, high) in PAPER_OF_BEAMS.items():
        rng = random.Random(0)
        workload = [DATASETS[dataset].draw(rng) for _ in range(8)]
        found = [100 * count_saving(dataset, workload, n, 16, is_search=True).memory_saved for n in (2, 6)]
        assert min(found) == pytest.approx(low, abs=4)
        assert high < max(found) < high + 15


def test_one_beam_shares_nothing_and_two_hold_what_they_share_once() -> None:
    work = [Work(tuple(range(40)), 1, 20)]
    assert count_saving("Alpaca", work, 1, 16, is_search=True).memory_saved == 0
    two = count_saving("Alpaca", work, 2, 16, is_search=True)
    assert two.num_unshared_blocks == count_saving("Alpaca", work * 2, 1, 16).num_unshared_blocks - 3  # before the fork
    assert two.num_blocks <= count_saving("Alpaca", work, 2, 16).num_blocks


def test_a_picture_has_a_bar_for_each_run_and_the_papers_lines() -> None:
    workload = [Work(tuple(range(20)), 1, 8)]
    savings = [count_saving(dataset, workload, n, 16) for dataset in DATASETS for n in (1, 2, 6)]
    savings += [count_saving(dataset, workload, 2, 16, is_search=True) for dataset in DATASETS]
    drawn = draw(savings, "a <title>")
    picture = svg(drawn)
    assert len(re.findall("<rect[^>]*><title>(Alpaca|ShareGPT), ", picture)) == 8
    assert picture.count("<title>the paper: ") == 6
    assert [picture.count(f">{name}</text>") for name in ("1 sample", "2 samples", "2 beams")] == [1, 1, 1]
    assert "a &lt;title&gt;" in picture
    assert page(drawn, table(savings), NOTE).startswith("<!doctype html>")
    assert [row[-2] for row in table(savings)[1:4]] == ["", "16.2 to 30.5 %", "16.2 to 30.5 %"]


def test_a_step_is_timed_where_all_decode() -> None:
    counts = [(1, 100), (2, 2), (2, 2), (2, 2), (1, 1)]
    events = [
        StepDone(time, step, 0.0, 0.0, 0.0, num_tokens, num_seqs)
        for step, (time, (num_seqs, num_tokens)) in enumerate(zip((1.0, 3.0, 4.0, 4.5, 9.0), counts, strict=True))
    ]
    assert step_seconds(events, 2) == 0.75
    with pytest.raises(ConfigError, match="no two steps had 3 sequences that decode"):
        step_seconds(events, 3)
