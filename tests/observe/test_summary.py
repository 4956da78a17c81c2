"""The line for the server's log: rates of the interval, and silence while nothing happens."""

import pytest

from octavo.observe.event_log import EventLog
from octavo.observe.events import Arrived, EngineStarted, Finished, FirstToken, PrefixHit, Sampled, Started
from octavo.observe.metrics import EngineMetrics
from octavo.observe.summary import INTERVAL_S, IntervalSummary


def test_rates_are_of_the_interval_and_of_an_idle_one_nothing_is_said() -> None:
    now = 100.0
    log = EventLog(0)
    log.start(EngineStarted(0.0, num_blocks=10, block_size=4, block_bytes=1, num_groups=1, max_model_len=40))
    summary = IntervalSummary(EngineMetrics(log, model_name="m"), lambda: now)
    assert summary.line() is None
    for event in (
        Arrived(100.0, "a", 20, 1),
        Started(100.0, 1, "a", 0),
        PrefixHit(100.0, 1, 5, ()),
        FirstToken(101.0, "a"),
        Sampled(101.0, 1, (1,), 1),
    ):
        log.write(event)
    now = 110.0
    assert summary.line() == (
        "prompt 2.0 tok/s, generation 0.1 tok/s, running 1, waiting 0, KV 0.0%, prefix hits 25.0%"
    )
    now = 112.0
    assert summary.line() == "prompt 0.0 tok/s, generation 0.0 tok/s, running 1, waiting 0, KV 0.0%"
    log.write(Finished(113.0, 1, "a", "stop", 1))
    now = 122.0
    assert summary.line() is None


def test_a_line_is_logged_once_an_interval(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    log = EventLog(0)
    log.start(EngineStarted(0.0, num_blocks=10, block_size=4, block_bytes=1, num_groups=1, max_model_len=40))
    summary = IntervalSummary(EngineMetrics(log, model_name="m"), lambda: now)
    log.write(Arrived(100.0, "a", 20, 1))
    with caplog.at_level("INFO", logger="octavo"):
        now = 100.0 + INTERVAL_S - 0.1
        summary.log()
        assert not caplog.messages
        now = 100.0 + INTERVAL_S
        summary.log()
        summary.log()
    assert len(caplog.messages) == 1
    assert summary.seconds_left == INTERVAL_S
