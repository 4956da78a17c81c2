"""ParallelCore with scripted engines: whatever dies and comes back in whichever order, each request ends once."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from octavo.channel import Note
from octavo.errors import EngineDeadError
from octavo.processes.offline_engines import OfflineEngines
from octavo.processes.parallel_core import ParallelCore
from octavo.processes.transport import (
    Abort,
    AddRequest,
    Down,
    FinishSequence,
    Question,
    Refusal,
    Reply,
    SequenceNews,
    StepNews,
    Up,
    Welcome,
    encode,
    fingerprint_of,
)
from octavo.request import RequestLimits
from tests.simulate import make_request

LIMITS = RequestLimits(max_model_len=64, max_num_seqs=4, max_logprobs=5, vocab_size=99, eos_token_ids=())
WELCOME = Welcome(LIMITS, 1000, {}, [])
NUM_TOKENS = 4


class Engines:
    """Each generates the tokens 0, 1, 2, 3 for every request, one at each `turn`. Dead ones take nothing."""

    def __init__(self, num_engines: int = 2) -> None:
        self.welcomes = [WELCOME] * num_engines
        self.up = set(range(num_engines))
        self.live: list[dict[int, int]] = [{} for _ in self.welcomes]  # key -> tokens so far
        self.news: list[tuple[int, Down | Note]] = []
        self.headers: list[dict[str, str] | None] = []  # of every request sent
        self.waited = 0
        self.is_closed = False

    def poll(self, seconds: float) -> list[tuple[int, Down | Note]]:
        self.waited += seconds > 0
        assert self.waited < 1000, "it waits for what never comes"
        news, self.news = self.news, []
        return news

    def send(self, engine: int, message: Up) -> None:
        if engine not in self.up:
            return
        match message:
            case AddRequest():
                assert message.key not in self.live[engine]
                self.live[engine][message.key] = 0
                self.headers.append(message.trace_headers)
            case Abort(key) | FinishSequence(key):
                self.live[engine].pop(key, None)
            case Question(number):
                self.news.append((engine, Reply(number, encode(True))))

    def turn(self, engine: int) -> None:
        step = StepNews(0.0, [], [], [], [])
        for key, num in list(self.live[engine].items()):
            if num in (0, NUM_TOKENS - 1):
                reason = "length" if num else None
                step.others.append(SequenceNews(key, 0, [num], 1, reason))  # type: ignore[arg-type]
            else:
                step.keys.append(key)
                step.token_ids.append(num)
            self.live[engine][key] = num + 1
            if num == NUM_TOKENS - 1:
                del self.live[engine][key]
        self.news.append((engine, step))

    def die(self, engine: int, guilty: tuple[str, ...] = ()) -> None:
        self.up.discard(engine)
        self.live[engine] = {}
        self.news.append((engine, Note("engine_down", engine=engine, text="it burnt", fingerprints=list(guilty))))

    def rise(self, engine: int) -> None:
        self.up.add(engine)
        self.news.append((engine, WELCOME))

    def close(self) -> None:
        self.is_closed = True


def made(num_engines: int = 2) -> tuple[ParallelCore, Engines]:
    engines = Engines(num_engines)
    return ParallelCore(cast(OfflineEngines, engines)), engines


def run(core: ParallelCore, engines: Engines, turns: int = 50) -> dict[str, list[Any]]:
    """Request id -> its tokens, and how it ended."""
    found: dict[str, list[Any]] = {}
    for _ in range(turns):
        for update in core.step():
            got = found.setdefault(update.sequence.request.request_id, [])
            got += update.token_ids
            if update.sequence.finish_reason is not None:
                got.append(update.sequence.finish_reason)
        if not core.has_unfinished:
            break
        for engine in sorted(engines.up):
            engines.turn(engine)
    return found


def requests(num: int) -> list[Any]:
    return [make_request(f"r{place}", [place, 1, 2], max_tokens=NUM_TOKENS) for place in range(num)]


WHOLE = [0, 1, 2, 3, "length"]


def test_steps_that_came_together_are_handed_out_one_by_one() -> None:
    core, engines = made()
    core.add_request(requests(1)[0])
    for _ in range(NUM_TOKENS):
        engines.turn(0)
        engines.turn(1)
    steps = [core.step() for _ in range(NUM_TOKENS)]
    assert [[one.token_ids for one in step] for step in steps] == [[[0]], [[1]], [[2]], [[3]]]
    assert not core.has_unfinished


def test_what_had_begun_ends_and_what_had_not_begins_anew() -> None:
    core, engines = made()
    first, second = requests(2)
    core.add_request(first)
    engines.turn(0)
    core.step()
    second.data_parallel_rank = None
    core.add_request(second)
    engines.die(core._by_id["r0"].ticket.engine)
    engines.die(core._by_id["r1"].ticket.engine)
    engines.rise(1)
    found = run(core, engines)
    assert found == {"r0": ["error"], "r1": WHOLE}
    assert "went down: it burnt" in str(first.sequences[0].stop_reason)


def test_an_engine_that_dies_before_its_welcome_is_read_gets_nothing() -> None:
    core, engines = made(1)
    engines.die(0)
    core.step()
    engines.rise(0)
    engines.die(0)
    core.add_request(requests(1)[0])
    core.step()
    engines.rise(0)
    assert run(core, engines) == {"r0": WHOLE}


def test_a_guilty_request_does_not_begin_anew() -> None:
    core, engines = made()
    (request,) = requests(1)
    core.add_request(request)
    engines.die(core._by_id["r0"].ticket.engine, (fingerprint_of(request),))
    assert run(core, engines) == {"r0": ["error"]}
    assert "the engine died 2 times" in str(request.sequences[0].stop_reason)


def test_a_caller_s_trace_goes_with_its_request_even_when_it_begins_anew() -> None:
    core, engines = made()
    (request,) = requests(1)
    request.trace_headers = {"traceparent": "00-1-2-01"}
    core.add_request(request)
    engines.die(core._by_id["r0"].ticket.engine)
    assert run(core, engines) == {"r0": WHOLE}
    assert engines.headers == [request.trace_headers] * 2


def test_a_refused_request_ends_with_the_reason() -> None:
    core, engines = made()
    (request,) = requests(1)
    core.add_request(request)
    sent = core._by_id["r0"]
    engines.news.append((sent.ticket.engine, Refusal(sent.key, "invalid", "it never fits")))
    assert [update.sequence.stop_reason for update in core.step()] == ["it never fits"]
    assert not core.has_unfinished


def test_a_stop_string_ends_a_sequence_once() -> None:
    core, engines = made(1)
    (request,) = requests(1)
    core.add_request(request)
    engines.turn(0)
    (update,) = core.step()
    assert core.finish_sequence(update.sequence.sequence_id, "x")
    assert not core.finish_sequence(update.sequence.sequence_id, "x")
    assert engines.live == [{}]
    assert not core.has_unfinished


def test_questions_are_answered_by_the_living() -> None:
    core, engines = made()
    assert core.answers("x") == {0: encode(True), 1: encode(True)}
    engines.die(0)
    assert core.answers("x") == {1: encode(True)}
    engines.die(1)
    with pytest.raises(EngineDeadError, match="all engines are down"):
        core.answers("x")
    core.close()
    assert engines.is_closed


@pytest.mark.parametrize("seed", range(20))
def test_deaths_at_any_moment_lose_no_request(seed: int) -> None:
    dice = random.Random(seed)
    core, engines = made(3)
    waiting, found = requests(30), {request.request_id: [] for request in requests(30)}  # type: ignore[var-annotated]
    aborted = set()
    for _ in range(2000):
        act = dice.random()
        if waiting and act < 0.2:
            core.add_request(waiting.pop())
        elif act < 0.25 and core._by_id:
            name = dice.choice(sorted(core._by_id))
            core.abort(name)
            aborted.add(name)
        elif act < 0.35 and engines.up:
            engines.die(dice.choice(sorted(engines.up)))
        elif act < 0.55 and len(engines.up) < 3:
            engines.rise(dice.choice(sorted({0, 1, 2} - engines.up)))
        elif act < 0.8:
            for engine in sorted(engines.up):
                engines.turn(engine)
        else:
            for update in core.step():
                got = found[update.sequence.request.request_id]
                assert "length" not in got
                assert "error" not in got
                got += update.token_ids
                if update.sequence.finish_reason is not None:
                    got.append(update.sequence.finish_reason)
        if not waiting and not core.has_unfinished:
            break
    engines.rise(0)
    engines.waited = 0
    for name, rest in run(core, engines, 200).items():
        found[name] += rest
    for name, got in found.items():
        assert name in aborted or got == WHOLE or (got[-1] == "error" and got[:-1] == [0, 1, 2, 3][: len(got) - 1]), got
    assert not core.has_unfinished
    assert [core._router.work(engine) for engine in range(3)] == [0, 0, 0]
