"""AsyncLLM: many coroutines on one engine; leaving, aborting and shutting down."""

import asyncio

import pytest

from octavo import AsyncLLM, EngineArgs, EngineDeadError, InvalidRequestError, RequestOutputKind, SamplingParams
from octavo.engine.llm_engine import EngineClient

PROMPTS = ["The capital of France is", "One, two, three,", "Once upon a time", "Water boils at"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=10)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def engine():
    llm = AsyncLLM("smollm2", max_model_len=256, max_num_seqs=8)
    yield llm
    llm.shutdown()


async def final(engine: AsyncLLM, prompt: str, params: SamplingParams, **options):
    last = None
    async for output in engine.generate(prompt, params, **options):
        last = output
    return last


async def until_idle(engine: AsyncLLM) -> None:
    for _ in range(500):
        stats = await engine.stats()
        if stats.num_running == stats.num_waiting == stats.num_used_blocks == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"the engine never came to rest: {await engine.stats()}")


def test_requests_run_together_and_as_if_alone(engine: AsyncLLM) -> None:
    async def both():
        together = await asyncio.gather(*(final(engine, prompt, GREEDY) for prompt in PROMPTS))
        alone = [await final(engine, prompt, GREEDY) for prompt in PROMPTS]
        return together, alone

    together, alone = asyncio.run(both())
    assert [o.outputs[0].text for o in together] == [o.outputs[0].text for o in alone]
    assert all(output.finished for output in together)


def test_deltas_arrive_one_by_one(engine: AsyncLLM) -> None:
    async def collect():
        return [o async for o in engine.generate(PROMPTS[0], GREEDY.replace(output_kind=RequestOutputKind.DELTA))]

    outputs = asyncio.run(collect())
    assert sum(len(output.outputs[0].token_ids) for output in outputs) == 10
    assert len(outputs) >= 9


def test_leaving_the_loop_frees_the_blocks(engine: AsyncLLM) -> None:
    async def leave():
        async for _ in engine.generate(PROMPTS[0], ENDLESS):
            break
        await until_idle(engine)

    asyncio.run(leave())


def test_cancelling_a_task_frees_the_blocks(engine: AsyncLLM) -> None:
    async def cancel():
        task = asyncio.create_task(final(engine, PROMPTS[0], ENDLESS))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(engine)

    asyncio.run(cancel())


def test_abort_ends_a_request_with_a_last_output(engine: AsyncLLM) -> None:
    async def abort():
        task = asyncio.create_task(final(engine, PROMPTS[0], ENDLESS, request_id="long"))
        await asyncio.sleep(0.2)
        await engine.abort("long")
        return await task

    output = asyncio.run(abort())
    assert output.finished
    assert output.outputs[0].finish_reason == "abort"


def test_a_second_abort_harms_nobody(engine: AsyncLLM) -> None:
    async def abort_twice():
        given = [ENDLESS, ENDLESS.replace(max_tokens=60)]
        tasks = [asyncio.create_task(final(engine, PROMPTS[i], given[i], request_id=f"twice-{i}")) for i in range(2)]
        await asyncio.sleep(0.2)
        for _ in range(3):
            await engine.abort("twice-0")
        return await tasks[0], await tasks[1]

    aborted, other = asyncio.run(abort_twice())
    assert aborted.outputs[0].finish_reason == "abort"
    assert other.outputs[0].finish_reason == "length"


def test_a_refused_request_raises_and_harms_no_other(engine: AsyncLLM) -> None:
    async def mixed():
        good = asyncio.create_task(final(engine, PROMPTS[1], ENDLESS, request_id="same"))
        await asyncio.sleep(0.02)
        with pytest.raises(InvalidRequestError, match="'same' is in use"):
            await final(engine, PROMPTS[0], GREEDY, request_id="same")
        with pytest.raises(InvalidRequestError, match="token id"):
            await final(engine, [10**9], GREEDY)
        await engine.abort("same")
        return await good

    assert asyncio.run(mixed()).outputs[0].finish_reason == "abort", "it ran on"


def test_several_are_aborted_at_once(engine: AsyncLLM) -> None:
    async def abort():
        tasks = [asyncio.create_task(final(engine, PROMPTS[i], ENDLESS, request_id=f"many-{i}")) for i in range(3)]
        await asyncio.sleep(0.2)
        await engine.abort(f"many-{i}" for i in range(2))
        await engine.abort(["many-2", "never there"])
        with pytest.raises(InvalidRequestError, match="request_id is 5"):
            await engine.abort(5)
        return await asyncio.gather(*tasks)

    assert [output.outputs[0].finish_reason for output in asyncio.run(abort())] == ["abort"] * 3


def test_arguments_are_checked_as_llms(engine: AsyncLLM) -> None:
    ids = engine.get_tokenizer().encode(PROMPTS[0])
    assert asyncio.run(final(engine, ids, GREEDY, lora_request=None)).prompt_token_ids == ids
    for options in ({"lora_request": "x"}, {"temperature": 0}, {"request_id": 5}, {"priority": "high"}):
        with pytest.raises(InvalidRequestError, match=next(iter(options))):
            asyncio.run(final(engine, PROMPTS[0], GREEDY, **options))
    with pytest.raises(InvalidRequestError, match="sampling_params is "):
        asyncio.run(final(engine, PROMPTS[0], {"n": 1}))


def test_health_and_the_cache_are_asked_of_the_engine() -> None:
    async def ask():
        engine = AsyncLLM.from_engine_args(EngineArgs("smollm2", max_model_len=256, max_num_seqs=2))
        await engine.check_health()
        prompt = "A prompt of a length that fills more than one block of the cache. " * 3
        cached = [(await final(engine, prompt, GREEDY)).num_cached_tokens for _ in range(2)]
        assert await engine.reset_prefix_cache()
        cached.append((await final(engine, prompt, GREEDY)).num_cached_tokens)
        engine.shutdown()
        with pytest.raises(EngineDeadError, match="shut down"):
            await engine.check_health()
        return cached

    first, again, after = asyncio.run(ask())
    assert (first, after) == (0, 0)
    assert again > 0


def test_shutdown_tells_those_who_wait() -> None:
    async def shut_down():
        engine = AsyncLLM("smollm2", max_model_len=256, max_num_seqs=2)
        task = asyncio.create_task(final(engine, PROMPTS[0], ENDLESS))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(engine.shutdown)
        with pytest.raises(EngineDeadError, match="shut down"):
            await task
        with pytest.raises(EngineDeadError):
            await final(engine, PROMPTS[0], GREEDY)

    asyncio.run(shut_down())


def test_it_is_an_engine_client(engine: AsyncLLM) -> None:
    client: EngineClient = engine
    info = client.model_info
    assert (info.max_model_len, info.max_num_seqs, client.is_alive) == (256, 8, True)
    assert dict(info.card)["model"]
    assert b"octavo:generation_tokens_total" in asyncio.run(client.metrics())
    assert asyncio.run(client.memory_map()).startswith(b'{"num_blocks":')


def test_a_salt_parts_the_caches(engine: AsyncLLM) -> None:
    async def cached(salt: str | None) -> int:
        return (await final(engine, "A long enough prompt. " * 8, GREEDY, cache_salt=salt)).num_cached_tokens

    first, ours, again, others = [asyncio.run(cached(salt)) for salt in ("ours", "ours", None, "theirs")]
    assert (first, again, others) == (0, 0, 0)
    assert ours >= 16


@pytest.mark.parametrize(
    ("salt", "prompt"), [("", "x"), (7, "x"), ("a", {"prompt": "x", "cache_salt": "b"})], ids=["empty", "int", "two"]
)
def test_a_salt_that_is_none_is_refused(engine: AsyncLLM, salt: object, prompt: object) -> None:
    with pytest.raises(InvalidRequestError, match="cache_salt is"):
        asyncio.run(final(engine, prompt, GREEDY, cache_salt=salt))
