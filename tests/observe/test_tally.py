"""The tally and its report against logs written by hand, where every figure can be counted on paper."""

import pytest

from octavo.observe.event_log import EventLog
from octavo.observe.events import (
    Arrived,
    BlockCopied,
    BlocksFreed,
    BlocksGiven,
    EngineStarted,
    Event,
    Finished,
    FirstToken,
    Forked,
    Preempted,
    PrefixHit,
    Scheduled,
    StepDone,
)
from octavo.observe.report import Report
from octavo.observe.tally import Tally

STARTED = EngineStarted(time=0.0, num_blocks=100, block_size=4, block_bytes=2**20, num_groups=1, max_model_len=40)


def log_of(*events: Event) -> EventLog:
    log = EventLog(1000)
    for event in (STARTED, *events):
        log.write(event)
    return log


def report_of(*events: Event) -> Report:
    return Tally(log_of(*events)).report()


def scheduled(step: int, *grants: tuple[int, int, int]) -> Scheduled:
    """grants: (sequence, computed, granted)."""
    ids, computed, granted = zip(*grants, strict=True)
    return Scheduled(float(step), step, ids, computed, granted, num_waiting=0, num_free_blocks=0)


def step_done(step: int) -> StepDone:
    return StepDone(float(step) + 0.5, step, 0.0, 0.5, 0.0, 0, 0)


def test_one_sequence() -> None:
    report = report_of(
        Arrived(1.0, "a", num_prompt_tokens=5, num_sequences=1),
        BlocksGiven(1.0, 1, 0, (7, 8)),
        scheduled(1, (1, 0, 5)),
        FirstToken(1.25, "a"),
        step_done(1),
        scheduled(2, (1, 5, 1)),
        step_done(2),
        BlocksFreed(3.0, 1, 0, (7, 8), "finished"),
        Finished(3.0, 1, "a", "stop", num_output_tokens=2),
    )
    assert (report.num_requests, report.num_sequences, report.num_steps) == (1, 1, 2)
    assert (report.num_prompt_tokens, report.num_output_tokens) == (5, 2)
    assert report.seconds == 2.0
    assert report.mean_ttft_s == 0.25
    assert report.peak.num_used_blocks == 2
    # 8 slots held in each of two steps, 5 and then 6 of them filled
    assert report.waste == pytest.approx(1 - 11 / 16)
    assert report.contiguous_blocks == 10
    assert report.sharing is None


def test_the_peak_is_the_step_with_most_blocks() -> None:
    report = report_of(
        Arrived(1.0, "a", 4, 1),
        Arrived(1.0, "b", 8, 1),
        BlocksGiven(1.0, 1, 0, (1,)),
        BlocksGiven(1.0, 2, 0, (2, 3)),
        scheduled(1, (1, 0, 4), (2, 0, 8)),
        BlocksFreed(2.0, 2, 0, (2, 3), "finished"),
        scheduled(2, (1, 4, 1)),
    )
    assert report.peak.num_used_blocks == 3
    assert report.peak.num_sequences == 2
    assert report.contiguous_blocks == 20
    assert dict(report.lines())["contiguous"].startswith("20 blocks (20.0 MiB)")


def test_samples_share_the_prompt_and_copy_one_block() -> None:
    """A prompt of 6 tokens, three samples: block 1 is full and stays shared, block 2 is copied by two of them."""
    report = report_of(
        Arrived(1.0, "a", 6, 3),
        BlocksGiven(1.0, 1, 0, (1, 2)),
        scheduled(1, (1, 0, 6)),
        Forked(1.5, 1, 2, "a", 2),
        Forked(1.5, 1, 3, "a", 2),
        BlockCopied(2.0, 2, 2, 20),
        BlockCopied(2.0, 3, 2, 30),
        scheduled(2, (1, 6, 1), (2, 6, 1), (3, 6, 1)),
    )
    assert report.sharing is not None
    assert report.sharing.num_sequences == 3
    assert report.sharing.num_blocks == 4
    assert report.sharing.num_shared_blocks == 1
    assert report.sharing.num_blocks_unshared == 6
    # step 1: 8 slots, 6 filled; step 2: block 1 full once, blocks 2, 20 and 30 hold three tokens each
    assert report.waste == pytest.approx(1 - (6 + 4 + 9) / (8 + 16))
    assert dict(report.lines())["shared"] == (
        "3 samples of one prompt held 4 blocks, 1 shared and 3 owned alone, in place of 6"
    )
    assert (report.mean_blocks, report.mean_blocks_unshared) == ((2 + 4) / 2, (2 + 6) / 2)
    assert report.sharing_saved == 1 - 6 / 8
    # step 2 decodes: 4 slots of block 1 and 3 of each other block, of 256 KiB each; unshared 3 x 7
    assert (report.read_bytes, report.read_bytes_unshared) == (13 * 2**18, 21 * 2**18)
    assert dict(report.lines())["reads"] == (
        "a decode step reads 3.2 MiB of KV if it reads shared blocks once, 5.2 MiB if not"
    )


def test_prefix_hits_are_full_blocks_and_counted() -> None:
    report = report_of(
        Arrived(1.0, "a", 8, 1),
        BlocksGiven(1.0, 1, 0, (1, 2)),
        scheduled(1, (1, 0, 8)),
        Arrived(1.0, "b", 9, 1),
        PrefixHit(2.0, 2, 8, (1, 2)),
        BlocksGiven(2.0, 2, 0, (3,)),
        scheduled(2, (2, 8, 1)),
    )
    assert report.num_prefix_tokens == 8
    assert report.peak.num_used_blocks == 3
    assert report.peak.num_shared_blocks == 2
    assert report.waste == pytest.approx(1 - (8 + 9) / (8 + 12))
    assert "prefix hits" in dict(report.lines())


def test_blocks_behind_a_window_are_not_held() -> None:
    report = report_of(
        Arrived(1.0, "a", 8, 1),
        BlocksGiven(1.0, 1, 0, (1, 2)),
        scheduled(1, (1, 0, 8)),
        BlocksFreed(2.0, 1, 0, (1,), "window"),
        BlocksGiven(2.0, 1, 0, (3,)),
        scheduled(2, (1, 8, 1)),
    )
    assert report.peak.num_used_blocks == 2
    assert report.waste == pytest.approx(1 - (8 + 5) / (8 + 8))


def test_a_preempted_sequence_starts_again_from_nothing() -> None:
    report = report_of(
        Arrived(1.0, "a", 4, 1),
        BlocksGiven(1.0, 1, 0, (1,)),
        scheduled(1, (1, 0, 4)),
        BlocksFreed(2.0, 1, 0, (1,), "preempted"),
        Preempted(2.0, 1, "a", 4),
        BlocksGiven(3.0, 1, 0, (5, 6)),
        scheduled(2, (1, 0, 5)),
    )
    assert report.num_preemptions == 1
    assert report.peak.num_used_blocks == 2
    assert report.peak.num_filled_slots == 5
    assert "preempted" in dict(report.lines())


def test_a_recorder_follows_what_comes_after_it() -> None:
    log = log_of()
    tally = Tally(log)
    log.write(Arrived(1.0, "a", 4, 1))
    assert tally.report().num_requests == 1
