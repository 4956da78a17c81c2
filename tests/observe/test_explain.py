"""Lives of requests in sentences, from logs of simulated runs and from events that make no sense."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from octavo.cli import main as cli
from octavo.config import SchedulerConfig
from octavo.errors import LogError
from octavo.observe.events import EngineStarted
from octavo.observe.explain import MAX_STORIES, is_asked, requests_in, stories
from octavo.observe.flight_log import LogHeader, LogWriter
from octavo.observe.snapshot import Snapshot
from octavo.observe.story import Story, span
from tests.observe.test_flight_log import event_of, kinds
from tests.simulate import Arrival, Simulator, make_request

PROMPT = list(range(64))


def told(simulator: Simulator, asked: str) -> list[str]:
    (story,) = stories(simulator.events, asked)
    return [f"{moment.after:.0f} {moment.text}" for moment in story.moments]


def one_after_another(**config: int | str) -> Simulator:
    return Simulator(num_blocks=21, config=SchedulerConfig(max_num_seqs=4, **config))


def test_a_prefix_hit_forks_and_copies_are_told() -> None:
    simulator = one_after_another()
    simulator.run([Arrival(0, make_request("a", PROMPT, max_tokens=4))])
    simulator.run([Arrival(4, make_request("b", [*PROMPT, 7, 7], n=2, max_tokens=3))])
    assert told(simulator, "b") == [
        "0 arrived with 66 prompt tokens; wants 2 samples of at most 3 tokens",
        "4 reached the engine's queue",
        "4 started after 4.0 s",
        "4 64 of 66 prompt tokens came from the prefix tree: 4 blocks not computed again",
        "4 1 fork of it, sharing its 5 blocks: none is copied",
        "4 its first token, 4.0 s after its arrival; 2 tokens computed in 1 chunk, step 5; it took 1 block",
        "5 sample 1 wrote into block 5, which 2 sequences held, so it was copied to 6",
        "6 sample 1 ended with 3 tokens, length",
        "6 sample 2 ended with 3 tokens, length",
        "6 in all 6.0 s; 6 tokens, those after the first in 2.0 s; its longest pause between tokens 1.0 s, until step 6"
        "; it took 1 block",
    ]


def test_waiting_chunks_and_passing_are_told() -> None:
    simulator = one_after_another(max_num_batched_tokens=48, schedule_conservativeness=0.0)
    simulator.add(make_request("large", [1] * 200, max_tokens=20))
    simulator.step()
    simulator.add(make_request("waits", [2] * 130, max_tokens=4), make_request("small", [3] * 10, max_tokens=4))
    simulator.run()
    life = told(simulator, "waits")
    assert "1 waits for a share of the step's tokens: wants 130 tokens, the step has 0 left" in life
    assert any("waits for KV blocks: needs 9, " in line for line in life)
    assert any("; it was passed once, by small" in line for line in life)
    assert any("130 tokens computed in 3 chunks of 48, 48 and 34, steps " in line for line in life)


def test_a_preemption_says_for_whom() -> None:
    simulator = one_after_another(scheduling_policy="priority", schedule_conservativeness=0.0)
    simulator.add(make_request("worse", [1] * 200, max_tokens=60, priority=5))
    simulator.step()
    simulator.step()
    simulator.add(make_request("better", [2] * 200, max_tokens=4, priority=1))
    simulator.run()
    life = told(simulator, "worse")
    (preempted,) = [line for line in life if "preempted" in line]
    assert preempted == (
        "2 it was preempted with 201 computed tokens: to make way for request better, which is of better priority"
    )
    assert any("started again after " in line for line in life)
    assert life[0] == "0 arrived with 200 prompt tokens; wants at most 60 tokens, priority 5"


def test_a_request_that_somebody_ended_or_that_a_fault_ended() -> None:
    simulator = one_after_another()
    simulator.add(make_request("a", PROMPT))
    simulator.step()
    simulator.scheduler.abort("a")
    assert told(simulator, "a")[-3:-1] == ["1 its client ended it, or left", "1 it ended with 1 token, abort"]
    simulator.add(make_request("b", PROMPT))
    simulator.plan()
    simulator.scheduler.fail("ZeroDivisionError: zero")
    assert told(simulator, "b")[-3:-1] == [
        "1 a step failed: ZeroDivisionError: zero",
        "1 it ended with 0 tokens, error: ZeroDivisionError: zero",
    ]
    simulator.add(make_request("c", PROMPT))
    assert told(simulator, "c")[-1] == "1 the log ends here, and the request has not ended"


def test_a_calls_id_finds_all_its_requests() -> None:
    assert is_asked("5f-0-aa", "cmpl-5f")
    assert is_asked("5f-0-aa", "chatcmpl-5f")
    assert is_asked("cmpl-5f-0-aa", "cmpl-5f")
    assert is_asked("cmpl-5f-0-aa", "cmpl-5f-0-aa")
    assert is_asked("cmpl-mine-0-aa", "mine"), "which the client gave"
    assert is_asked("msg_cmpl-mine-0-aa", "cmpl-mine")
    assert not is_asked("chatcmpl-5f-0-aa", "cmpl-5f")
    assert not is_asked("cmpl-mine2-0-aa", "mine")
    assert not is_asked("5f6-0-aa", "cmpl-5f")
    assert not is_asked("5f-0-aa", "cmpl-")
    assert not is_asked("5f", "")
    simulator = one_after_another()
    simulator.run([Arrival(0, make_request(f"x-{place}-s", PROMPT)) for place in range(3)])
    assert [story.name for story in stories(simulator.events, "cmpl-x")] == ["x-0-s", "x-1-s", "x-2-s"]
    with pytest.raises(LogError, match="no request 'x-3-s' is in this log; did you mean"):
        stories(simulator.events, "x-3-s")
    assert requests_in(simulator.events, 2) == ["x-1-s", "x-2-s"]


@pytest.mark.parametrize("seed", range(6))
def test_events_that_make_no_sense_are_told_somehow(seed: int) -> None:
    draw = random.Random(seed)
    log = [event_of(draw, draw.choice([*kinds(), Snapshot])) for _ in range(600)]
    names = requests_in(log, 1000)
    assert names
    for name in names:
        try:
            found = stories(log, name)
        except LogError:
            assert name == ""
            continue
        assert 0 < len(found) <= MAX_STORIES
        assert all(story.moments and isinstance(story, Story) for story in found)
        assert all(span(moment.after) for story in found for moment in story.moments)


def test_the_command_tells_a_life_and_lists_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulator = one_after_another()
    simulator.run([Arrival(0, make_request("a\x1b[2J", PROMPT, max_tokens=4))])
    path = tmp_path / "run.olog"
    started = EngineStarted(0.0, 20, 16, 1, 1, 1024)
    with path.open("wb") as file:
        LogWriter(file, LogHeader(version="1", written_at=float("inf"), clock=0.0, started=started)).write(
            simulator.events
        )
    assert cli.main(["explain", "--log", str(path)]) == 0
    assert capsys.readouterr().out == "a\\x1b[2J\n"
    assert cli.main(["explain", "a\x1b[2J", "--log", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "request a\\x1b[2J, arrived at an unknown time"
    assert lines[1] == "    0.0 ms  arrived with 64 prompt tokens; wants at most 4 tokens"
    assert cli.main(["explain", "b", "--log", str(path)]) == 2
    assert "no request 'b' is in this log" in capsys.readouterr().err
    assert cli.main(["explain", "b", "--log", str(tmp_path / "none")]) == 2
    assert "cannot be opened: No such file" in capsys.readouterr().err


def test_durations_are_for_people() -> None:
    assert [span(seconds) for seconds in (0.0, 0.0042, 0.04, 1.25, 61.0, 200.0)] == [
        *("0.0 ms", "4.2 ms", "40 ms", "1.2 s", "61.0 s", "3 min 20 s")
    ]
