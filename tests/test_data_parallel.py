"""An LLM with several engines gives the outputs of one, and one engine's death is its own requests' alone."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo import (
    LLM,
    AsyncLLM,
    BeamSearchParams,
    ConfigError,
    EngineDeadError,
    InvalidRequestError,
    ModelLoadError,
    RequestOutputKind,
    SamplingParams,
)
from octavo.observe.events import Arrived
from octavo.observe.flight_log import read_log
from octavo.processes.parallel_core import ParallelCore

OPTIONS: dict[str, Any] = {"num_threads": 1, "max_model_len": 512, "num_gpu_blocks_override": 256}
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=450, ignore_eos=True)
PROMPTS = ["The capital of France is", "Once upon a time", "Ink", "Three colours:", "One, two,", "The sea"]


@pytest.fixture(scope="module")
def one() -> Iterator[LLM]:
    with LLM("smollm2", **OPTIONS) as llm:
        yield llm


@pytest.fixture(scope="module")
def two() -> Iterator[LLM]:
    llm = LLM("smollm2", data_parallel_size=2, disable_log_stats=False, **OPTIONS)
    processes = engine_processes(llm)
    yield llm
    llm.close()
    assert not any(map(is_running, processes.values())), "closing ends the processes"
    with pytest.raises(EngineDeadError):
        llm.generate("a")


def core_of(llm: LLM) -> ParallelCore:
    core = llm._engine.core
    assert isinstance(core, ParallelCore)
    return core


def engine_processes(llm: LLM) -> dict[int, int]:
    """Engine -> process id, of those that run."""
    keepers = core_of(llm)._engines._keepers
    return {index: one.child.process.pid for index, one in enumerate(keepers) if one.child is not None}


def is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def plain(outputs: list[Any]) -> list[Any]:
    """What does not depend on time, with log-probabilities rounded."""
    return [
        (
            *(output.prompt, output.prompt_token_ids, output.finished),
            *((one.index, one.text, one.token_ids, one.finish_reason, one.stop_reason) for one in output.outputs),
            *(rounded(one.logprobs) for one in output.outputs),
            rounded(output.prompt_logprobs),
        )
        for output in outputs
    ]


def rounded(rows: Any) -> Any:
    return rows and [row and {key: (round(one.logprob, 2), one.rank) for key, one in row.items()} for row in rows]


def is_at_rest(llm: LLM) -> bool:
    core = core_of(llm)
    deadline = time.monotonic() + 20
    while (stats := llm.stats()).num_used_blocks or stats.num_running or stats.num_waiting:
        assert time.monotonic() < deadline, f"the engines never came to rest: {stats}"
    assert not any(map(core._router.work, (0, 1)))
    return not (core._sent or core._by_id or core._by_sequence or core._held or core._answers)


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(seed=7, n=4, max_tokens=8, top_p=0.9, temperature=0.8),
        SamplingParams(max_tokens=6),
        SamplingParams(temperature=0.0, max_tokens=30, stop=["the", "e,"], n=2),
        SamplingParams(temperature=0.0, max_tokens=5, logprobs=3, prompt_logprobs=2),
        SamplingParams(seed=1, n=3, max_tokens=1, bad_words=["Paris"], min_tokens=1),
        SamplingParams(temperature=0.0, max_tokens=6, n=3, use_beam_search=True),
        SamplingParams(max_tokens=4, detokenize=False, output_kind=RequestOutputKind.DELTA),
    ],
    ids=["greedy", "samples", "own seeds", "stops", "logprobs", "bans", "beams", "ids"],
)
def test_two_engines_answer_as_one(one: LLM, two: LLM, params: SamplingParams) -> None:
    assert plain(two.generate(PROMPTS, params, use_tqdm=False)) == plain(one.generate(PROMPTS, params, use_tqdm=False))
    assert is_at_rest(two)


def test_everything_else_is_as_with_one(one: LLM, two: LLM) -> None:
    conversation = [{"role": "user", "content": "Name a colour."}]
    answers, sessions, beams = [], [], []
    for llm in (one, two):
        answers.append(plain(llm.chat(conversation, GREEDY, use_tqdm=False)))
        with llm.session("Once upon a time there was a") as story:
            story.fork(3)
            story.generate(SamplingParams(seed=2, max_tokens=4))
            sessions.append({number: branch.text for number, branch in story.branches.items()})
        params = BeamSearchParams(beam_width=3, max_tokens=4)
        beams.append([beam.text for output in llm.beam_search(PROMPTS[:2], params) for beam in output.sequences])
    assert answers[0] == answers[1]
    assert sessions[0] == sessions[1]
    assert beams[0] == beams[1]
    assert ("engines", "2 of these, which share the requests") in two.card
    assert two.stats().num_blocks == 2 * one.stats().num_blocks
    assert {part: two.memory()[part] for part in ("weights", "KV blocks")} == {
        part: 2 * one.memory()[part] for part in ("weights", "KV blocks")
    }
    assert two.reset_prefix_cache()


def test_prompts_are_shared_and_each_engine_has_its_metrics(two: LLM) -> None:
    def tokens() -> dict[str, float]:
        return {
            metric.labels["engine"]: metric.value  # type: ignore[attr-defined]
            for metric in two.get_metrics()
            if metric.name == "vllm:generation_tokens"
        }

    before = tokens()
    two.generate([f"{place} ink and paper" for place in range(8)], GREEDY, use_tqdm=False)
    assert {engine: value - before[engine] for engine, value in tokens().items()} == {"0": 32, "1": 32}


def test_equal_beginnings_meet_on_one_engine(two: LLM) -> None:
    long = "A long beginning that many prompts have in common, as system prompts do. " * 8
    first = two.generate(long, GREEDY, use_tqdm=False)[0]
    assert first.num_cached_tokens == 0
    for word in ("one", "two", "three"):
        (again,) = two.generate(long + word, GREEDY, use_tqdm=False)
        assert again.num_cached_tokens >= len(first.prompt_token_ids) - 32


def test_each_engine_s_events_get_a_file(two: LLM, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each of several engines has its own events"):
        _ = two.events
    two.generate(PROMPTS, GREEDY, use_tqdm=False)
    two.save_events(tmp_path / "run.olog")
    counts = [
        sum(isinstance(event, Arrived) for event in read_log(str(tmp_path / name))[1])
        for name in ("run.olog", "run.olog.1")
    ]
    assert min(counts) > 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_stream_that_is_left_frees_both_engines(two: LLM) -> None:
    seen = set()
    for output in two.stream(PROMPTS, ENDLESS.replace(output_kind=RequestOutputKind.DELTA)):
        seen.add(output.request_id)
        if len(seen) == len(PROMPTS):
            break
    assert is_at_rest(two)


def test_threads_share_the_engines(one: LLM, two: LLM) -> None:
    expected, found = plain(one.generate(PROMPTS, GREEDY, use_tqdm=False)), {}

    def ask(place: int) -> None:
        found[place] = plain(two.generate(PROMPTS[place], GREEDY, use_tqdm=False))

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [found[place][0] for place in range(len(PROMPTS))] == expected


def test_a_bad_prompt_stops_the_call_before_anything_runs(two: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=r"prompts\[1\]: the prompt has"):
        two.generate(["a", "b " * 600], GREEDY, use_tqdm=False)
    assert is_at_rest(two)


def test_an_engine_s_death_ends_what_it_had_begun_and_no_more(one: LLM, two: LLM) -> None:
    """What it had not begun is computed by the other."""
    long = ENDLESS.replace(max_tokens=60)
    prompts = [*PROMPTS, *(f"{place} pages" for place in range(4))]
    expected = plain(one.generate(prompts, long, use_tqdm=False))
    before, core = engine_processes(two), core_of(two)
    last: dict[int, Any] = {}
    is_killed = False
    for output in two.stream(prompts, long):
        if not is_killed and any(sent.has_news and sent.ticket.engine == 0 for sent in core._sent.values()):
            os.kill(before[0], signal.SIGKILL)
            is_killed = True
        last[int(output.request_id.rpartition("-")[2])] = output
    lost = {place for place, output in last.items() if output.outputs[0].finish_reason == "error"}
    assert sorted(last) == list(range(len(prompts)))
    assert 0 < len(lost) <= 5
    for place, output in last.items():
        if place in lost:
            assert "engine 0 went down: its process ended with signal 9 (SIGKILL)" in output.outputs[0].stop_reason
        else:
            assert plain([output]) == [expected[place]]
    deadline = time.monotonic() + 60
    while core._engines.up != {0, 1}:
        core._poll(0.05)
        assert time.monotonic() < deadline, "it is started again"
    after = engine_processes(two)
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)
    assert is_at_rest(two)


def test_requests_wait_while_no_engine_lives(one: LLM, two: LLM) -> None:
    for process_id in engine_processes(two).values():
        os.kill(process_id, signal.SIGKILL)
    while core_of(two)._engines.up:
        core_of(two)._poll(0.01)
    with pytest.raises(EngineDeadError, match="all engines are down; they are being started again"):
        two.stats()
    assert plain(two.generate(PROMPTS, GREEDY, use_tqdm=False)) == plain(one.generate(PROMPTS, GREEDY, use_tqdm=False))


def test_an_async_llm_has_several_engines_too(one: LLM) -> None:
    async def story() -> None:
        llm = AsyncLLM("smollm2", data_parallel_size=2, **OPTIONS)
        try:

            async def answer(rank: int | None) -> str:
                outputs = [output async for output in llm.generate(PROMPTS[0], GREEDY, data_parallel_rank=rank)]
                return outputs[-1].outputs[0].text

            texts = await asyncio.gather(*map(answer, (0, 0, 1, None)))
            assert set(texts) == {one.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0].outputs[0].text}
            text = (await llm.metrics()).decode()
            values = [line for line in text.splitlines() if line.startswith("octavo:generation_tokens_total")]
            assert sorted(int(line.rpartition(" ")[2]) for line in values) == [16, 16]
            assert len(await llm.events(1)) > 100
            assert b"blocks" in await llm.memory_map(1)
            with pytest.raises(InvalidRequestError, match="there is no engine 2"):
                await llm.events(2)
            with pytest.raises(InvalidRequestError, match="data_parallel_rank is 2, allowed is 0 to 1"):
                await answer(2)
        finally:
            llm.shutdown()

    asyncio.run(story())


def test_one_engine_alone_has_rank_0(one: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="data_parallel_rank=1 is not supported"):
        one.generate("a", GREEDY, data_parallel_rank=1)


def test_engines_that_cannot_start_say_why(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        LLM(str(tmp_path / "nowhere"), data_parallel_size=2)
    with pytest.raises(ConfigError, match="max_num_batched_tokens"):
        LLM("smollm2", data_parallel_size=2, max_num_batched_tokens=0)
