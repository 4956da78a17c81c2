"""A recorded run is decided again in the same way, without a model and without its tokens."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from octavo.cache.blocks import make_groups
from octavo.cache.kv_cache import KVCache
from octavo.cli import main as cli
from octavo.config import SchedulerConfig
from octavo.engine.core import EngineCore, OverlappedCore
from octavo.engine.pipelined import PipelinedCore
from octavo.engine.snapshot import take_snapshot
from octavo.errors import InvalidRequestError, LogError
from octavo.executor.executor import ThreadExecutor
from octavo.messages import StepPlan, StepResult
from octavo.observe.event_log import EventLog
from octavo.observe.events import (
    Arrived,
    BlockCopied,
    EngineStarted,
    Event,
    Finished,
    Preempted,
    PrefixHit,
    Sampled,
    Unforked,
    Waits,
)
from octavo.observe.flight_log import LogHeader, LogWriter, read_log, read_open_log
from octavo.observe.snapshot import Snapshot
from octavo.scheduler.scheduler import Scheduler
from octavo.simulator.compared_events import ComparedEvents
from octavo.simulator.replay import Replayed, replay
from tests.fake_executor import FakeExecutor
from tests.fake_tokens import VOCAB_SIZE
from tests.observe.test_flight_log import event_of, kinds, made
from tests.simulate import make_request

OPTIONS = {"scheduling_policy": "priority", "schedule_conservativeness": 0.3, "max_bypasses": 3}


class Faulty(FakeExecutor):
    def __init__(self, bad_steps: set[int], **sizes: object) -> None:
        super().__init__(**sizes)
        self._bad_steps = bad_steps

    def execute(self, plan: StepPlan) -> StepResult:
        result = super().execute(plan)
        if plan.step_id in self._bad_steps:
            raise FloatingPointError("a kernel fell over")
        return result


def recorded(
    seed: int,
    *,
    is_overlapped: bool,
    windows: tuple[int | None, ...] = (None,),
    num_stages: int = 1,
    has_beams: bool = False,
    has_snapshots: bool = False,
    capacity: int = 100_000,
) -> tuple[bytes, list[Event]]:
    """A log of prefixes, samples, priorities, aborts, stops and faults, in little memory."""
    draw, log, groups = random.Random(seed), EventLog(capacity), make_groups(windows)
    started = EngineStarted(0.0, 29, 4, 1, len(groups), 128, windows=tuple(group.window for group in groups))
    log.start(
        EngineStarted(
            *(0.0, 29, 4, 1, len(groups), 128),
            windows=started.windows,
            max_num_seqs=5,
            max_num_batched_tokens=24,
            is_overlapped=is_overlapped,
            num_stages=num_stages,
        )
    )
    cache = KVCache(num_blocks=30, block_size=4, groups=groups, events=log, clock=lambda: 0.0)
    config = SchedulerConfig(max_num_seqs=5, **OPTIONS)
    sizes = {"max_model_len": 128, "max_num_batched_tokens": 24, "num_stages": num_stages}
    scheduler = Scheduler(config, cache, **sizes, events=log, clock=lambda: 0.0)
    worker = Faulty({9, 40}, num_blocks=30, block_size=4, groups=groups, max_num_seqs=5)
    executor = ThreadExecutor(worker) if is_overlapped else worker
    kind = partial(PipelinedCore, num_stages=num_stages) if num_stages > 1 else OverlappedCore
    core = (kind if is_overlapped else EngineCore)(scheduler, cache, executor, log, lambda: 0.0, check_invariants=True)
    for step in range(160):
        if step < 120 and draw.random() < 0.35:
            prompt = [7] * draw.randrange(1, 30) + [draw.randrange(3) for _ in range(draw.randrange(3))]
            stops = frozenset(draw.sample(range(VOCAB_SIZE), 60)) if draw.random() < 0.5 else ()
            params: dict[str, Any] = {"n": draw.choice([1, 1, 3]), "max_tokens": draw.randrange(20)}
            if params["max_tokens"] == 0:
                params["n"] = 1
            elif has_beams and draw.random() < 0.5:
                params |= {"use_beam_search": True, "best_of": min(3, params["n"] + draw.randrange(3))}
                params |= draw.choice([{}, {"early_stopping": True}, {"length_penalty": -1.0}])
            priority = draw.randrange(2)
            with suppress(InvalidRequestError):  # beams that the pool is too small for
                core.add_request(
                    make_request(str(step), prompt, seed=step, priority=priority, eos_token_ids=stops, **params)
                )
        if core.has_unfinished:
            core.step()
            if has_snapshots:
                log.write(take_snapshot(0.0, scheduler, cache))
        if step == 70:
            core.reset_prefix_cache()
        if scheduler.sequences and draw.random() < 0.08:
            one = draw.choice(scheduler.sequences)
            if draw.random() < 0.5:
                core.abort(one.request.request_id)
            elif one.row >= 0 and not one.request.sampling_params.use_beam_search:
                core.finish_sequence(one.sequence_id, "a stop string")
    while core.has_unfinished:
        core.step()
    core.close()
    assert log.started is not None
    times = {"written_at": 0.0, "clock": 0.0}
    is_whole = next(iter(log)) is log.started
    header = LogHeader(version="1", **times, started=log.started, config={"scheduler": OPTIONS}, is_whole=is_whole)
    file = io.BytesIO()
    LogWriter(file, header).write(log)
    return file.getvalue(), list(log)


def replayed(data: bytes, **options: object) -> Replayed:
    return replay(lambda: read_open_log(io.BytesIO(data), "a.olog"), options)


@pytest.mark.parametrize("num_stages", [0, 1, 3], ids=["plain", "overlapped", "pipelined"])
@pytest.mark.parametrize("windows", [(None,), (8, None)], ids=["full", "window"])
def test_a_run_is_decided_as_it_was(num_stages: int, windows: tuple[int | None, ...]) -> None:
    seen: set[object] = set()
    for seed in range(3):
        data, events = recorded(seed, is_overlapped=num_stages > 0, windows=windows, num_stages=max(1, num_stages))
        found = replayed(data)
        assert found.difference is None, f"seed {seed}, after {found.num_events} events: {found.difference}"
        assert found.num_steps > 100
        seen |= {type(event) for event in events}
        seen |= {event.reason for event in events if type(event) is Finished}
    assert {BlockCopied, Preempted, PrefixHit, Waits, "stop", "length", "abort"} <= seen


@pytest.mark.parametrize("num_stages", [0, 1, 3], ids=["plain", "overlapped", "pipelined"])
@pytest.mark.parametrize("windows", [(None,), (8, None), (8,)], ids=["full", "window", "sliding"])
def test_a_run_goes_on_as_it_did_from_any_snapshot(num_stages: int, windows: tuple[int | None, ...]) -> None:
    """At each later snapshot, the engine's whole state is the recorded one, too."""
    options = {"is_overlapped": num_stages > 0, "windows": windows, "num_stages": max(1, num_stages)}
    data, _ = recorded(num_stages, has_snapshots=True, **options)
    header, events = read_open_log(io.BytesIO(data), "a.olog")
    whole = list(events)
    places = [place for place, event in enumerate(whole) if type(event) is Snapshot]
    assert len(places) > 100
    for place in random.Random(num_stages).sample(places[:-30], 6):
        last = msgspec.structs.replace(header, is_whole=False), whole[place:]
        found = replay(lambda last=last: (last[0], iter(last[1])))
        assert found.difference is None, f"from event {place}, after {found.num_events}: {found.difference}"
        assert found.num_steps > 20


@pytest.mark.parametrize("is_overlapped", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("windows", [(None,), (8, None)], ids=["full", "window"])
def test_beam_searches_choose_as_they_did(is_overlapped: bool, windows: tuple[int | None, ...]) -> None:
    seen: set[object] = set()
    for seed in range(4):
        data, events = recorded(seed, is_overlapped=is_overlapped, windows=windows, has_beams=True)
        found = replayed(data)
        assert found.difference is None, f"seed {seed}, after {found.num_events} events: {found.difference}"
        seen |= {type(event) for event in events}
        searches = {event.request_id for event in events if type(event) is Arrived and event.num_beams}
        seen |= {event.reason for event in events if type(event) is Finished and event.request_id in searches}
    assert {Unforked, Preempted, PrefixHit, "stop", "length", "abort"} <= seen


def test_other_options_decide_otherwise_and_the_first_difference_is_named() -> None:
    data, _ = recorded(1, is_overlapped=False)
    found = replayed(data, scheduling_policy="fcfs")
    assert found.difference is not None
    assert found.difference.startswith("the log has ")
    assert ", and the replay has " in found.difference


def test_a_log_that_cannot_be_replayed_is_refused() -> None:
    file = io.BytesIO()
    started = EngineStarted(0.0, 10**9, 4, 1, 1, 128, max_num_seqs=4, max_num_batched_tokens=8)
    LogWriter(file, LogHeader(version="1", written_at=0.0, clock=0.0, started=started)).write([started])
    with pytest.raises(LogError, match="num_blocks is 1,000,000,000, allowed for a replay are 1 to"):
        replayed(file.getvalue())
    file = io.BytesIO()
    LogWriter(file, LogHeader(version="1", written_at=0.0, clock=0.0, started=started, is_whole=False)).write([])
    with pytest.raises(LogError, match=r"it has no snapshot of its engine\. Write it with --record"):
        replayed(file.getvalue())


def test_a_state_that_comes_out_otherwise_is_named() -> None:
    data, _ = recorded(1, is_overlapped=False, has_snapshots=True)
    header, events = read_open_log(io.BytesIO(data), "a.olog")
    whole = list(events)
    first, second = [place for place, event in enumerate(whole) if type(event) is Snapshot][20:22]
    snapshot: Any = whole[second]
    whole[second] = msgspec.structs.replace(snapshot, free=snapshot.free[::-1])
    found = replay(lambda: (msgspec.structs.replace(header, is_whole=False), iter(whole[first:])))
    assert found.difference is not None
    assert found.difference.startswith(f"at step {snapshot.step}, free: the log has ")


def test_a_snapshot_without_the_schedulers_state_is_passed_over() -> None:
    data, _ = recorded(1, is_overlapped=True, has_beams=True, has_snapshots=True)
    header, events = read_open_log(io.BytesIO(data), "a.olog")
    whole = list(events)
    without = [event for event in whole if type(event) is Snapshot and event.scheduler is None]
    assert {event.why_not for event in without} == {"a beam search was running"}
    first = whole.index(without[0])
    last = msgspec.structs.replace(header, is_whole=False)
    assert replay(lambda: (last, iter(whole[first:]))).difference is None
    with pytest.raises(LogError, match="no replay can begin later: a beam search was running"):
        replay(lambda: (last, iter([without[0]])))


def test_a_snapshot_of_anything_is_replayed_or_refused() -> None:
    data, _ = recorded(2, is_overlapped=True, has_snapshots=True)
    header, events = read_open_log(io.BytesIO(data), "a.olog")
    whole = list(events)
    places = [place for place, event in enumerate(whole) if type(event) is Snapshot]
    last = msgspec.structs.replace(header, is_whole=False)
    for seed in range(150):
        draw = random.Random(seed)
        place = draw.choice(places[20:90])
        snapshot = damaged(draw, whole[place])
        with suppress(LogError):
            found = replay(lambda log=[snapshot, *whole[place + 1 : place + 20]]: (last, iter(log)))
            assert found.num_steps >= 0


def damaged(draw: random.Random, told: Any) -> Any:
    """The same struct with another value somewhere."""
    hints = get_type_hints(type(told))
    name = draw.choice(list(hints))
    value = getattr(told, name)
    if isinstance(value, tuple) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        one = damaged(draw, value[place]) if isinstance(value[place], msgspec.Struct) else draw.choice(value)
        made_value: Any = (*value[:place], *[one] * draw.randrange(3), *value[place + 1 :])
    elif isinstance(value, msgspec.Struct):
        made_value = damaged(draw, value)
    else:
        made_value = made(draw, hints[name])
    return msgspec.structs.replace(told, **{name: made_value})


def test_events_that_make_no_sense_differ() -> None:
    started = EngineStarted(0.0, 20, 4, 1, 1, 128, max_num_seqs=4, max_num_batched_tokens=16)
    header = LogHeader(version="1", written_at=0.0, clock=0.0, started=started)
    for seed in range(200):
        draw = random.Random(seed)

        def log(draw: random.Random = draw) -> Iterator[Event]:
            return iter([event_of(draw, draw.choice(kinds())) for _ in range(20)])

        events = list(log())
        try:
            found = replay(lambda events=events: (header, iter(events)))
        except LogError:
            continue
        assert found.num_steps >= 0


def test_the_command_says_whether_it_comes_out_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.olog"
    path.write_bytes(recorded(2, is_overlapped=False)[0])
    assert cli.main(["replay", str(path)]) == 0
    assert capsys.readouterr().out.endswith(" events: all decided as they were\n")
    path.write_bytes(recorded(2, is_overlapped=True, capacity=500)[0])
    header, events = read_log(path)
    assert not header.is_whole
    assert type(next(events)) is Snapshot
    assert cli.main(["replay", str(path)]) == 0
    assert capsys.readouterr().out.endswith(" events: all decided as they were\n")
    path.write_bytes(recorded(2, is_overlapped=False)[0])
    header, events = read_log(path)
    with path.open("wb") as file:
        writer = LogWriter(file, header)
        writer.write([event for event in events if type(event) is not Preempted])
    assert cli.main(["replay", str(path)]) == 1
    assert "and the replay has Preempted(" in capsys.readouterr().out
    path.write_text("Dear reader")
    assert cli.main(["replay", str(path)]) == 2


@pytest.mark.parametrize(("num_tokens", "is_alike"), [(4, True), (5, False)])
def test_how_many_tokens_a_grammar_forced_is_not_compared(num_tokens: int, is_alike: bool) -> None:
    """How many came is."""
    compared = ComparedEvents()
    compared.add_made(Sampled(0.0, 3, (1, 2), 4, (1, 3)))
    compared.add_told(Sampled(9.0, 3, (1, 2), num_tokens, (1, num_tokens - 1), num_forced=2))
    assert (compared.num_alike, compared.difference is None) == (1, is_alike)
