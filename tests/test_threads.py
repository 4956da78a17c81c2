"""One LLM, several threads: each gets its own outputs without waiting for others, and closing it ends all."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from octavo import LLM, EngineDeadError, InvalidRequestError, RequestOutputKind, SamplingParams
from octavo.observe.events import StepDone
from tests.conftest import TinyFolder

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
LIMIT = 60.0  # seconds after which a thread is taken for hanging


@pytest.fixture(scope="module")
def make(tiny_folder: TinyFolder) -> Callable[..., LLM]:
    folder = tiny_folder("llama")
    options = {"skip_tokenizer_init": True, "num_threads": 1, "max_num_seqs": 32, "num_gpu_blocks_override": 400}
    return lambda **more: LLM(folder, **{**options, **more})


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "overlapped"])
def llm(make: Callable[..., LLM], request: pytest.FixtureRequest) -> Iterator[LLM]:
    with make(check_invariants=True, async_scheduling=request.param) as engine:
        yield engine


def prompt(number: int) -> list[int]:
    return [3 + (number * 7 + place * 13) % 150 for place in range(4 + number % 9)]


def started(work: Callable[[], Any]) -> Future[Any]:
    """Run the work on a separate thread."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done


def tokens(outputs: Any) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_many_threads_get_what_one_would(llm: LLM) -> None:
    alone = {number: tokens(llm.generate([prompt(number)], GREEDY))[0] for number in range(24)}

    def generate(first: int) -> list[list[int]]:
        found: list[list[int]] = []
        for number in range(first, first + 4, 2):
            found += tokens(llm.generate([prompt(number % 24), prompt((number + 1) % 24)], GREEDY))
        return found

    def stream(first: int) -> list[list[int]]:
        made: dict[str, list[int]] = {}
        delta = GREEDY.replace(output_kind=RequestOutputKind.DELTA)
        for output in llm.stream([prompt((first + place) % 24) for place in range(4)], delta):
            made.setdefault(output.request_id.rpartition("-")[2], []).extend(output.outputs[0].token_ids)
        return [made[str(place)] for place in range(4)]

    threads = [started(lambda work=work, n=n: work(n * 3)) for n in range(8) for work in (generate, stream)]  # type: ignore[misc]
    for n, done in enumerate(threads):
        first = n // 2 * 3
        assert done.result(LIMIT) == [alone[(first + place) % 24] for place in range(4)]
    assert llm.stats().num_used_blocks == 0


def test_requests_of_all_threads_share_steps(llm: LLM) -> None:
    before = len(llm.events)
    threads = [started(lambda n=n: llm.generate(prompt(n), ENDLESS)) for n in range(6)]  # type: ignore[misc]
    for done in threads:
        done.result(LIMIT)
    sizes = [event.num_seqs for event in list(llm.events)[before:] if isinstance(event, StepDone)]
    assert max(sizes) >= 3
    assert len(sizes) < 6 * 200


def test_a_stream_that_nobody_reads_holds_up_nobody(llm: LLM) -> None:
    stream = llm.stream(prompt(1), ENDLESS)
    first = next(stream)
    assert len(started(lambda: llm.generate(prompt(2), ENDLESS)).result(LIMIT)) == 1
    newest = next(stream)  # all tokens since the first output, in one
    assert len(newest.outputs[0].token_ids) > len(first.outputs[0].token_ids) + 50
    del stream
    assert llm.stats().num_used_blocks == 0


def test_deltas_of_a_slow_reader_are_all_there(llm: LLM) -> None:
    (whole,) = tokens(llm.generate(prompt(5), GREEDY))
    stream = llm.stream(prompt(5), GREEDY.replace(output_kind=RequestOutputKind.DELTA))
    made = list(next(stream).outputs[0].token_ids)
    started(lambda: llm.generate(prompt(2), ENDLESS)).result(LIMIT)
    for output in stream:
        made += output.outputs[0].token_ids
    assert made == whole


def test_a_call_inside_a_streams_loop_is_a_call_like_any_other(llm: LLM) -> None:
    alone = tokens(llm.generate([prompt(3), prompt(4)], GREEDY))
    last = None
    for output in llm.stream(prompt(3), GREEDY):
        last = output
        assert tokens(llm.generate(prompt(4), GREEDY)) == alone[1:]
    assert tokens([last]) == alone[:1]


def test_threads_may_read_one_stream(llm: LLM) -> None:
    stream = llm.stream([prompt(n) for n in range(8)], GREEDY.replace(output_kind=RequestOutputKind.FINAL_ONLY))
    readers = [started(lambda: list(stream)) for _ in range(4)]
    outputs = [output for done in readers for output in done.result(LIMIT)]
    assert sorted(output.request_id.rpartition("-")[2] for output in outputs) == [str(n) for n in range(8)]


def test_closing_a_stream_ends_it_for_who_waits(llm: LLM) -> None:
    stream: Any = llm.stream(prompt(6), ENDLESS.replace(output_kind=RequestOutputKind.FINAL_ONLY, max_tokens=None))
    waits = started(lambda: list(stream))
    while llm.stats().num_running == 0 and not waits.done():
        time.sleep(0.001)
    stream.close()
    assert len(waits.result(LIMIT)) <= 1
    assert llm.stats().num_used_blocks == 0
    assert list(stream) == []


@pytest.mark.parametrize("is_overlapped", [False, True])
def test_close_ends_every_wait(make: Callable[..., LLM], is_overlapped: bool) -> None:
    engine = make(async_scheduling=is_overlapped)
    params = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
    unread = engine.stream([prompt(n) for n in range(300)], params)  # more than can be done in the time
    next(unread)
    threads = [started(lambda n=n: [engine.generate(prompt(n), params) for _ in range(1000)]) for n in range(4)]  # type: ignore[misc]
    threads += [started(lambda n=n: [list(engine.stream(prompt(n), params)) for _ in range(1000)]) for n in range(3)]  # type: ignore[misc]
    time.sleep(0.1)
    closers = [started(engine.close) for _ in range(3)]
    for done in closers:
        done.result(LIMIT)
    for done in threads:
        with pytest.raises(EngineDeadError, match="this engine was closed"):
            done.result(LIMIT)
    for call in (lambda: list(unread), engine.stats, engine.reset_prefix_cache, lambda: engine.generate(prompt(1))):
        with pytest.raises(EngineDeadError, match="this engine was closed"):
            call()
    engine.close()


def test_a_fault_of_the_engine_is_told_to_all(make: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    step, steps = engine._engine.step, iter(range(10**9))

    def fails() -> Any:
        if next(steps) == 20:
            raise RuntimeError("a wire came loose")
        return step()

    monkeypatch.setattr(engine._engine, "step", fails)
    threads = [started(lambda n=n: engine.generate(prompt(n), ENDLESS)) for n in range(4)]  # type: ignore[misc]
    for done in threads:
        with pytest.raises(EngineDeadError, match=r"the engine stopped: RuntimeError\('a wire came loose'\)"):
            done.result(LIMIT)
    with pytest.raises(EngineDeadError, match="a wire came loose"):
        engine.stats()


def test_a_refused_request_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    add, added = llm._engine.add_request, []

    def refuses(request: Any) -> None:
        if len(added) == 2:
            raise InvalidRequestError("never")
        added.append(request)
        add(request)

    with monkeypatch.context() as patch:
        patch.setattr(llm._engine, "add_request", refuses)
        with pytest.raises(InvalidRequestError, match="never"):
            llm.generate([prompt(n) for n in range(3)], GREEDY)
    assert (llm.stats().num_running, llm.stats().num_waiting) == (0, 0)


def test_a_call_from_within_a_step_is_refused_but_close_is_not(make: Callable[..., LLM]) -> None:
    """Calls from a signal handler, or from a finaliser during garbage collection."""
    engine = make()
    refusals: list[Exception] = []

    def listens(event: object) -> None:
        if isinstance(event, StepDone) and not refusals:
            for call in (lambda: engine.generate(prompt(1), GREEDY), engine.stats):
                with pytest.raises(InvalidRequestError, match="from within its own step") as caught:
                    call()
                refusals.append(caught.value)
            engine.close()

    engine.events.listen(listens)
    with pytest.raises(EngineDeadError, match="this engine was closed"):
        engine.generate(prompt(2), ENDLESS)
    assert len(refusals) == 2


def test_a_step_is_not_torn_by_ctrl_c(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = tokens(llm.generate([prompt(7)], GREEDY))
    step = llm._engine.core.step
    torn: list[int] = []

    def interrupted() -> Any:
        if len(torn) < 1:
            signal.raise_signal(signal.SIGINT)
            torn.append(1)  # not reached if the signal interrupts the step
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(llm._engine.core, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(prompt(8), ENDLESS)
    assert torn == [1]
    assert llm.stats().num_used_blocks == 0
    assert tokens(llm.generate([prompt(7)], GREEDY)) == alone
