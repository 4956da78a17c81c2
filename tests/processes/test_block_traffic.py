"""A decode engine whose prompts a prefill engine computes answers as one engine does, whatever happens to the other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.observe.events import PrefixHit
from octavo.observe.explain import stories
from octavo.processes import borrower_link
from octavo.processes.process_client import ProcessClient
from tests.conftest import TinyFolder
from tests.processes.engines import GREEDY, OPTIONS, ThreadEngine, borrows, lends
from tests.processes.mapped_pools import map_pools
from tests.server.live import until
from tests.structured.spelling_model import spelling_model

PROMPTS = [[(7 * i + 3 * j + i * j) % 90 + 5 for i in range(40 + 13 * j)] for j in range(5)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as end:
        return int(end.getsockname()[1])


def address_of(kind: str, directory: Path) -> str:
    return f"unix:{directory}/blocks" if kind == "unix" else f"127.0.0.1:{free_port()}"


def connected(engine: ThreadEngine) -> bool:
    borrower = engine.loop._traffic._borrower
    return borrower is not None and all(link.is_up for link in borrower._links)


@pytest.fixture(scope="module")
def expected(tiny_folder: TinyFolder) -> Callable[[str], list[list[int]]]:
    def of(model: str) -> list[list[int]]:
        with LLM(str(tiny_folder(model)), **OPTIONS) as llm:
            prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
            return [list(one.outputs[0].token_ids) for one in llm.generate(prompts, GREEDY)]

    return of


@pytest.fixture(params=["unix", "tcp", "mapped"])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ThreadEngine, ThreadEngine]]:
    address = address_of("tcp" if request.param == "tcp" else "unix", tmp_path)
    if request.param == "mapped":
        map_pools(monkeypatch)
    prefill = ThreadEngine(tmp_path, tiny_folder("llama"), lends(address))
    decode = ThreadEngine(tmp_path, tiny_folder("llama"), borrows(address))
    until(lambda: connected(decode))
    yield prefill, decode
    for engine in (decode, prefill):
        engine.stop()


def test_tokens_are_one_engines_and_prompts_are_computed_elsewhere(
    pair: tuple[ThreadEngine, ThreadEngine], expected: Callable[[str], list[list[int]]]
) -> None:
    prefill, decode = pair
    assert decode.answer(PROMPTS) == expected("llama")
    assert [(one.why, one.num_tokens) for one in decode.came] == [("", (len(p) - 1) // 16 * 16) for p in PROMPTS]
    hits = [event.num_tokens for event in decode.events if isinstance(event, PrefixHit)]
    assert sorted(hits) == sorted((len(prompt) - 1) // 16 * 16 for prompt in PROMPTS)
    assert decode.answer(PROMPTS) == expected("llama"), "all is found here now, so nobody is asked"
    assert len(decode.came) == len(PROMPTS)
    name = decode.came[0].request_id
    told = " ".join(moment.text for story in stories(decode.events, name) for moment in story.moments)
    assert "waits for blocks of another engine: 32 of its tokens are computed by the prefill engine" in told
    assert "the blocks of 32 tokens came from the prefill engine" in told
    assert stories(prefill.events, name), "the prefill engine's log knows the request by the same name"


@pytest.mark.parametrize("model", ["gemma3", "mistral"])
def test_windows_travel_too(
    model: str, tmp_path: Path, tiny_folder: TinyFolder, expected: Callable[[str], list[list[int]]]
) -> None:
    """Gemma has groups of both kinds; of Mistral only the last window's blocks are read, and travel."""
    address = address_of("unix", tmp_path)
    engines = [ThreadEngine(tmp_path, tiny_folder(model), task) for task in (lends(address), borrows(address))]
    try:
        until(lambda: connected(engines[1]))
        assert engines[1].answer(PROMPTS) == expected(model)
        assert [one.why for one in engines[1].came] == [""] * len(PROMPTS)
        if model == "mistral":
            started = engines[1].engine.events.started
            assert started is not None
            assert {one.num_bytes for one in engines[1].came} == {started.block_bytes}
    finally:
        for engine in reversed(engines):
            engine.stop()


def test_what_is_here_is_not_sent_and_tenants_stay_apart(
    pair: tuple[ThreadEngine, ThreadEngine], expected: Callable[[str], list[list[int]]]
) -> None:
    _, decode = pair
    prompt, answer = PROMPTS[4], expected("llama")[4]
    assert decode.answer([prompt[:40]])[0]
    assert decode.answer([prompt]) == [answer]
    assert [one.num_tokens for one in decode.came] == [32, 80 - 32], "the first two blocks were here"
    assert decode.answer([prompt], cache_salt="a tenant") == [answer]
    assert [one.num_tokens for one in decode.came] == [32, 48, 80], "another salt shares nothing"
    assert decode.answer([[1, 2, 3]])[0]
    assert len(decode.came) == 3, "a short prompt is computed here"


def test_samples_beams_and_prompt_logprobs_work(pair: tuple[ThreadEngine, ThreadEngine]) -> None:
    _, decode = pair
    prompt = PROMPTS[2]
    (alone,) = decode.answer([prompt])
    assert decode.answer([prompt], SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, n=3)) == [alone]
    before = len(decode.came)
    logprobs = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, prompt_logprobs=1)
    assert decode.answer([PROMPTS[3]], logprobs)[0]
    assert len(decode.came) == before, "whose log-probabilities it wants, it computes"


def test_answers_follow_grammars_behind_blocks_that_came(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    """The first time they wait for their grammar and then for blocks, later for blocks alone."""
    model, options = spelling_model(tiny_folder, tmp_path), {"skip_tokenizer_init": False}
    asked = SamplingParams(structured_outputs={"regex": "name(a|b)(name|age)[a-c]12"}, seed=1, max_tokens=20)
    with LLM(str(model), **(OPTIONS | options)) as llm:
        prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        expected = [list(one.outputs[0].token_ids) for one in llm.generate(prompts, asked, use_tqdm=False)]
    address = address_of("unix", tmp_path)
    engines = [ThreadEngine(tmp_path, model, task, **options) for task in (lends(address), borrows(address))]
    try:
        until(lambda: connected(engines[1]))
        for salt in (None, "a tenant"):
            assert engines[1].answer(PROMPTS, asked, cache_salt=salt) == expected
        assert [one.why for one in engines[1].came] == [""] * 2 * len(PROMPTS)
    finally:
        for engine in reversed(engines):
            engine.stop()


def test_an_eviction_in_between_costs_only_time(
    tmp_path: Path, tiny_folder: TinyFolder, expected: Callable[[str], list[list[int]]]
) -> None:
    """Both pools hold hardly more than the longest request, so blocks go while others come."""
    address = address_of("unix", tmp_path)
    tasks = (lends(address), borrows(address))
    engines = [
        ThreadEngine(tmp_path, tiny_folder("llama"), task, num_gpu_blocks_override=11, max_model_len=128)
        for task in tasks
    ]
    try:
        until(lambda: connected(engines[1]))
        assert engines[1].answer(PROMPTS * 3) == expected("llama") * 3
        assert engines[1].answer(PROMPTS) == expected("llama")
        assert any(not one.why for one in engines[1].came)
    finally:
        for engine in reversed(engines):
            engine.stop()


def test_steps_on_a_thread_of_their_own(
    tmp_path: Path, tiny_folder: TinyFolder, expected: Callable[[str], list[list[int]]]
) -> None:
    address = address_of("unix", tmp_path)
    tasks = (lends(address), borrows(address))
    engines = [ThreadEngine(tmp_path, tiny_folder("llama"), task, async_scheduling=True) for task in tasks]
    try:
        until(lambda: connected(engines[1]))
        assert engines[1].answer(PROMPTS) == expected("llama")
        assert [one.why for one in engines[1].came] == [""] * len(PROMPTS)
    finally:
        for engine in reversed(engines):
            engine.stop()


def test_without_the_prefill_engine_prompts_are_computed_here(
    tmp_path: Path, tiny_folder: TinyFolder, expected: Callable[[str], list[list[int]]]
) -> None:
    """Before it is there, once it is, and when it is gone."""
    address = address_of("unix", tmp_path)
    decode = ThreadEngine(tmp_path, tiny_folder("llama"), borrows(address))
    try:
        assert decode.answer(PROMPTS[:1]) == expected("llama")[:1]
        assert "is not connected" in decode.came[-1].why
        prefill = ThreadEngine(tmp_path, tiny_folder("llama"), lends(address))
        until(lambda: connected(decode))
        assert decode.answer(PROMPTS[1:2]) == expected("llama")[1:2]
        assert decode.came[-1].why == ""
        prefill.stop()
        until(lambda: not connected(decode))
        assert decode.answer(PROMPTS[2:3]) == expected("llama")[2:3]
        assert "the prefill engine is not connected" in decode.came[-1].why
        name = decode.came[-1].request_id
        told = " ".join(moment.text for story in stories(decode.events, name) for moment in story.moments)
        assert "its prompt is computed here, not by another engine: the prefill engine is not connected" in told
    finally:
        decode.stop()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"block_size": 32}, "its block_size is '16', and this engine's '32'"),
        ({"kv_cache_dtype": "float16"}, "its kv_cache_dtype is 'float32', and this engine's 'float16'"),
        ({"kv_cache_dtype": "fp8"}, "its kv_cache_dtype is 'float32', and this engine's 'fp8 with scales of 1'"),
        ({"backend": "reference"}, "its backend is 'cpu', and this engine's 'reference'"),
        ({"model": 1}, "its model is another, or has other weights"),
    ],
)
def test_another_model_or_layout_is_refused_when_it_connects(
    options: dict[str, Any], why: str, tmp_path: Path, tiny_folder: TinyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    address = address_of("unix", tmp_path)
    options = dict(options)
    seed = options.pop("model", 0)
    prefill = ThreadEngine(tmp_path, tiny_folder("llama"), lends(address))
    decode = ThreadEngine(tmp_path, tiny_folder("llama", seed), borrows(address), **options)
    try:
        until(lambda: why in caplog.text)
        assert decode.answer(PROMPTS[:1])[0]
        assert why in decode.came[-1].why
        assert not prefill.core._scheduler.num_steps
    finally:
        decode.stop()
        prefill.stop()


def test_an_aborted_request_leaves_nothing(pair: tuple[ThreadEngine, ThreadEngine]) -> None:
    """Its client leaves while its blocks are on their way, as often as not."""
    prefill, decode = pair

    async def leave(client: ProcessClient, number: int) -> None:
        stream = client.generate({"prompt_token_ids": [number % 90 + 5, *PROMPTS[4]]}, GREEDY)
        task = asyncio.ensure_future(anext(stream))  # type: ignore[arg-type]
        await asyncio.sleep(number * 0.0005)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    decode.with_client(lambda client: asyncio.gather(*(leave(client, number) for number in range(24))))
    until(lambda: not decode.core.has_unfinished and not decode.core.num_waiting)
    until(lambda: not prefill.core.has_unfinished and not prefill.core.cache.pool.lent)
    until(lambda: not decode.core.cache.pool.lent)


def test_an_engine_with_much_to_do_is_not_asked_for_more(
    pair: tuple[ThreadEngine, ThreadEngine],
    expected: Callable[[str], list[list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(borrower_link, "_MOST_OPEN", 2)
    _, decode = pair
    assert decode.answer(PROMPTS) == expected("llama")
    told = [one.why for one in decode.came if one.why]
    assert told
    assert all("the prefill engine" in why and "has 2 prompts to compute already" in why for why in told)
