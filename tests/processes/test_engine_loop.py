"""An engine behind a socket gives the same outputs as in process. It runs on a thread here, behind a real socket."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, EngineBusyError, EngineDeadError, InvalidRequestError, RequestOutputKind, SamplingParams
from octavo.engine.core_protocol import EngineStats
from octavo.engine.llm_engine import EngineClient
from octavo.outputs import RequestOutput
from octavo.processes.process_client import ProcessClient
from octavo.server_config import AdmissionConfig
from tests.processes.engines import PATIENCE_S, SIZES, ThreadEngine, smollm2_engine

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def offline() -> Iterator[LLM]:
    with LLM("smollm2", **SIZES) as llm:
        yield llm


@pytest.fixture(scope="module")
def served(offline: LLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadEngine]:
    served = smollm2_engine(tmp_path_factory.mktemp("run"), offline)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def ask(served: ThreadEngine) -> Callable[..., Any]:
    return served.with_client


async def collect(
    client: EngineClient, params: SamplingParams, prompt: Any = PROMPT, **rest: Any
) -> list[RequestOutput]:
    return [output async for output in client.generate(prompt, params, **rest)]


async def until_idle(client: EngineClient) -> None:
    await until(client, lambda stats: stats.num_running == stats.num_waiting == stats.num_used_blocks == 0)


async def until_running(client: EngineClient, num_requests: int = 1) -> None:
    await until(client, lambda stats: stats.num_running == num_requests)


async def until(client: EngineClient, is_so: Callable[[EngineStats], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S / 2
    while time.monotonic() < deadline:
        if is_so(stats := await client.stats()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"the engine never came to that: {stats}")


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=7, max_tokens=24),
        SamplingParams(seed=7, n=4, max_tokens=12, top_p=0.9, temperature=0.8),
        SamplingParams(temperature=0.0, max_tokens=40, stop=["Tower", "the city"]),
        SamplingParams(temperature=0.0, max_tokens=40, stop=["Tower"], include_stop_str_in_output=True, n=2),
        SamplingParams(temperature=0.0, max_tokens=6, logprobs=3, prompt_logprobs=2),
        SamplingParams(temperature=0.0, max_tokens=4, logprob_token_ids=[7, 9], flat_logprobs=True),
        SamplingParams(seed=1, n=3, max_tokens=1),
        SamplingParams(temperature=0.0, max_tokens=20, bad_words=["Paris"], logit_bias={7042: -5.0}, min_tokens=3),
        SamplingParams(temperature=0.0, max_tokens=12, detokenize=False, stop_token_ids=[30]),
    ],
    ids=["seed", "samples", "stop", "stop kept", "logprobs", "asked ids", "one token", "bans", "ids only"],
)
def test_it_answers_as_offline(offline: LLM, ask: Callable[..., Any], params: SamplingParams) -> None:
    expected = offline.generate([PROMPT], params, use_tqdm=False)[0]
    cumulative = ask(lambda client: collect(client, params))[-1]
    assert cumulative.finished
    assert [_plain(one) for one in cumulative.outputs] == [_plain(one) for one in expected.outputs]
    assert _rounded(cumulative.prompt_logprobs) == _rounded(expected.prompt_logprobs)
    for one, other in zip(cumulative.outputs, expected.outputs, strict=True):
        assert _rounded(one.logprobs) == _rounded(other.logprobs)

    deltas = ask(lambda client: collect(client, params.replace(output_kind=RequestOutputKind.DELTA)))
    for one in expected.outputs:
        pieces = [piece for delta in deltas for piece in delta.outputs if piece.index == one.index]
        assert "".join(piece.text for piece in pieces) == one.text
        assert [token_id for piece in pieces for token_id in piece.token_ids] == one.token_ids
        assert pieces[-1].finish_reason == one.finish_reason

    final = ask(lambda client: collect(client, params.replace(output_kind=RequestOutputKind.FINAL_ONLY)))
    assert [_plain(one) for output in final for one in output.outputs] == [_plain(one) for one in expected.outputs]


def _plain(one: Any) -> tuple[Any, ...]:
    return one.index, one.text, one.token_ids, one.finish_reason, one.stop_reason


def _rounded(rows: Any) -> Any:
    return rows and [row and {key: (round(one.logprob, 2), one.rank) for key, one in row.items()} for row in rows]


def test_a_reader_that_lags_finds_the_tokens_of_several_steps_in_one_output(ask: Callable[..., Any]) -> None:
    async def lag(client: ProcessClient) -> list[RequestOutput]:
        outputs = []
        async for output in client.generate(
            PROMPT, ENDLESS.replace(output_kind=RequestOutputKind.DELTA, max_tokens=40)
        ):
            outputs.append(output)
            await until_idle(client)
        return outputs

    outputs = ask(lag)
    assert sum(len(output.outputs[0].token_ids) for output in outputs) == 40
    assert len(outputs) < 5


def test_leaving_frees_the_blocks(ask: Callable[..., Any]) -> None:
    async def leave(client: ProcessClient) -> None:
        async for _ in client.generate(PROMPT, ENDLESS):
            break
        task = asyncio.create_task(collect(client, ENDLESS))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(client)
        assert client.num_streams == 0

    ask(leave)


def test_a_front_end_that_is_gone_holds_no_blocks(ask: Callable[..., Any]) -> None:
    async def start(client: ProcessClient) -> None:
        outputs = client.generate(PROMPT, ENDLESS)
        await anext(outputs)

        client.engines[0].send = lambda message: None  # type: ignore[method-assign]  # it dies and can send no abort

    ask(start)
    ask(until_idle)


def test_an_abort_ends_a_request_wherever_it_was_made(served: ThreadEngine, ask: Callable[..., Any]) -> None:
    async def abort(client: ProcessClient) -> list[Any]:
        other = served.client()
        await other.welcomed()
        tasks = [asyncio.create_task(collect(client, ENDLESS, request_id=name)) for name in ("near", "far")]
        await until_running(client, 2)
        await client.abort("near")
        await other.abort("far")
        await other.abort("nobody")
        ends = [await task for task in tasks]
        other.close()
        return [outputs[-1].outputs[0].finish_reason for outputs in ends]

    assert ask(abort) == ["abort", "abort"]


def test_what_cannot_be_served_is_refused_to_its_sender(ask: Callable[..., Any]) -> None:
    async def mixed(client: ProcessClient) -> None:
        good = asyncio.create_task(collect(client, GREEDY, request_id="same"))
        await asyncio.sleep(0)
        for prompt, name, match in (
            ("x", "same", "in use"),
            ([10**9], "a", "token id"),
            ("y " * 300, "b", "tokens, allo"),
        ):
            with pytest.raises(InvalidRequestError, match=match):
                await collect(client, GREEDY, prompt, request_id=name)
        assert (await good)[-1].finished

    ask(mixed)


def test_an_id_in_use_at_another_front_end_is_refused(served: ThreadEngine, ask: Callable[..., Any]) -> None:
    async def twice(client: ProcessClient) -> None:
        first = asyncio.create_task(collect(client, ENDLESS, request_id="same"))
        await until_running(client)
        other = served.client()
        await other.welcomed()
        with pytest.raises(InvalidRequestError, match="'same' is in use"):
            await collect(other, GREEDY, request_id="same")
        other.close()
        await client.abort("same")
        assert (await first)[-1].outputs[0].finish_reason == "abort"

    ask(twice)


def test_a_message_that_is_none_harms_nobody(ask: Callable[..., Any]) -> None:
    async def spoil(client: ProcessClient) -> list[RequestOutput]:
        socket = client.engines[0]._link._socket
        assert socket is not None
        socket.send(b"\xc1 nonsense")
        return await collect(client, GREEDY)

    assert ask(spoil)[-1].finished


def test_metrics_and_stats_are_the_engine_s(ask: Callable[..., Any]) -> None:
    async def read(client: ProcessClient) -> tuple[bytes, Any]:
        await collect(client, GREEDY)
        return await client.metrics(), await client.stats()

    text, stats = ask(read)
    assert b"octavo:request_success_total{" in text
    assert stats.num_blocks == 127


def test_a_fault_in_one_text_ends_no_other(ask: Callable[..., Any]) -> None:
    async def break_one(client: ProcessClient) -> None:
        good = asyncio.create_task(collect(client, GREEDY))
        bad = asyncio.create_task(collect(client, ENDLESS))
        await asyncio.sleep(0)
        sequence: Any = list(client._streams.values())[-1].text._sequences[0]
        sequence.extend = lambda update: 1 / 0
        last = (await bad)[-1].outputs[0]
        assert last.finish_reason == "error"
        assert last.stop_reason == "its output could not be made: ZeroDivisionError: division by zero"
        assert (await good)[-1].finished
        await until_idle(client)

    ask(break_one)


def test_a_token_that_cannot_be_drawn_ends_its_request_alone(ask: Callable[..., Any], offline: LLM) -> None:
    """Also with log-probabilities, since such a token has none."""
    (the,) = offline.get_tokenizer().encode(" the", add_special_tokens=False)
    params = SamplingParams(logprobs=2, allowed_token_ids=[the], bad_words=[" the the"])

    async def generate(client: ProcessClient) -> tuple[list[RequestOutput], list[RequestOutput]]:
        return await asyncio.gather(collect(client, params), collect(client, GREEDY))

    bad, good = ask(generate)
    last = bad[-1].outputs[0]
    assert (last.token_ids, last.finish_reason, last.text) == ([the], "error", " the")
    assert last.stop_reason.startswith("no token could be drawn: ")
    assert good[-1].outputs[0].finish_reason == "length"


def test_an_engine_that_goes_down_ends_its_requests(ask: Callable[..., Any]) -> None:
    async def go_down(client: ProcessClient) -> None:
        task = asyncio.create_task(collect(client, ENDLESS))
        await until_running(client)
        client.disconnect("it burnt")
        with pytest.raises(EngineDeadError, match="it burnt"):
            await task
        assert not client.is_alive
        for work in (collect(client, GREEDY), client.stats(), client.metrics()):
            with pytest.raises(EngineDeadError, match="it burnt"):
                await work

    ask(go_down)


def test_a_full_queue_turns_away_and_a_long_wait_ends(tmp_path: Path, offline: LLM) -> None:
    admission = AdmissionConfig(max_num_queued_reqs=2, queue_timeout=0.5)
    served = smollm2_engine(tmp_path, offline, admission=admission, max_num_seqs=1)

    async def crowd(client: ProcessClient) -> None:
        running = asyncio.create_task(collect(client, ENDLESS.replace(max_tokens=240)))
        await until_running(client)
        waiting = [asyncio.create_task(collect(client, GREEDY)) for _ in range(2)]
        await asyncio.sleep(0)  # they are sent before the next one
        with pytest.raises(
            EngineBusyError, match="2 requests wait already, allowed are max_num_queued_reqs = 2"
        ) as busy:
            await collect(client, GREEDY)
        assert 1 <= busy.value.retry_after_s <= 60
        for task in waiting:
            with pytest.raises(EngineBusyError, match=r"waited .* allowed is queue_timeout = 0.5 s"):
                await task
        text = (await client.metrics()).decode()
        assert 'reason="queue_full"' in text
        await client.abort(next(iter(client._streams)))
        assert (await running)[-1].finished
        assert (await collect(client, GREEDY))[-1].finished

    try:
        served.with_client(crowd)
    finally:
        served.stop()


def test_prompts_that_wait_turn_others_away(tmp_path: Path, offline: LLM) -> None:
    admission = AdmissionConfig(max_num_queued_tokens=1)
    served = smollm2_engine(tmp_path, offline, admission=admission, max_num_seqs=1)

    async def crowd(client: ProcessClient) -> None:
        running = asyncio.create_task(collect(client, ENDLESS.replace(max_tokens=240)))
        await until_running(client)
        waiting = asyncio.create_task(collect(client, GREEDY, request_id="waits"))
        await asyncio.sleep(0)  # it is sent before the next one
        with pytest.raises(EngineBusyError, match=r"prompt tokens wait .* allowed are max_num_queued_tokens = 1"):
            await collect(client, GREEDY)
        await client.abort("waits")
        assert (await waiting)[-1].outputs[0].finish_reason == "abort"
        waiting = asyncio.create_task(collect(client, GREEDY))
        running.cancel()
        assert (await waiting)[-1].finished
        assert (await collect(client, GREEDY))[-1].finished

    try:
        served.with_client(crowd)
    finally:
        served.stop()


def test_a_crowd_that_comes_and_goes_leaves_nothing(tmp_path: Path, offline: LLM) -> None:
    served = smollm2_engine(tmp_path, offline, async_scheduling=True, num_gpu_blocks_override=40)

    async def crowd(client: ProcessClient) -> None:
        dice = random.Random(5)

        async def visit(place: int) -> int:
            params = SamplingParams(n=dice.choice([1, 1, 3]), max_tokens=dice.randint(1, 30), seed=place, stop=["e"])
            patience, num_tokens = dice.choice([2, 10**6]), 0
            prompt, delay = f"{place}: " * dice.randint(1, 9), dice.random() * 0.5
            await asyncio.sleep(delay)
            async with contextlib.aclosing(client.generate(prompt, params)) as outputs:
                async for output in outputs:
                    num_tokens = sum(len(one.token_ids) for one in output.outputs)
                    if num_tokens > patience:
                        break
            return num_tokens

        assert all(await asyncio.gather(*map(visit, range(24))))
        await until_idle(client)
        assert client.num_streams == 0
        assert served.loop._live == {}
        assert not any(served.loop._of_front_end.values())

    try:
        served.with_client(crowd)
    finally:
        served.stop()
