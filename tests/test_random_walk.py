"""A random walk over the public API, on several threads: every call returns an answer or raises one of Octavo's own
exceptions, and the engine still works afterwards."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from octavo import LLM, AsyncLLM, EngineArgs, OctavoError, SamplingParams
from octavo.cli.flags import config_fields
from octavo.sampling_params import RequestOutputKind
from octavo.vllm_options import CALL_ARGUMENTS, ENGINE_OPTIONS, SAMPLING_FIELDS
from tests.text.tokenizers import byte_level

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
SIZES = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 270,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": 262,
    "eos_token_id": 263,
    "torch_dtype": "float32",
}
BASE = {"load_format": "dummy", "num_threads": 1, "max_num_seqs": 8, "num_gpu_blocks_override": 40, "max_logprobs": 5}
LIMIT = 30.0  # seconds after which a thread counts as hung


def walk(count: int) -> Callable[[Any], Any]:
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.large_base_example]
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # a failure ends the engine, so examples cannot be shrunk
        suppress_health_check=checks,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("walk") / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SIZES))
    byte_level().save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "overlapped"])
def llm(folder: Path, request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM(folder, **BASE, check_invariants=True, async_scheduling=request.param) as engine:
        yield engine


class Thing:
    """A value that no parameter takes."""


# ints of every size, floats of every kind, texts with half characters, and other values that users might pass
numbers = st.one_of(
    st.integers(-3, 40), st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**400]), st.integers(), st.floats()
)
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "auto", "4k", "-1", "None", "hello world", "\ud800", "a\0b", "true", "<s>", "float16", "cpu"]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=4), st.just(Thing()), st.just(Thing))
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(scalars, inner, max_size=2),
    ),
    max_leaves=4,
)


def check_told(error: OctavoError) -> None:
    assert str(error), "an exception without a word"


def own_errors(call: Callable[[], Any]) -> Any:
    """The call's result; None if it raises one of our own exceptions, with a message."""
    try:
        return call()
    except OctavoError as error:
        return check_told(error)


OPTIONS = st.dictionaries(
    st.one_of(st.sampled_from([*config_fields(), *ENGINE_OPTIONS]), st.text(max_size=6)), junk, min_size=1, max_size=4
)


@walk(100)
@given(options=OPTIONS)
def test_options_are_taken_or_refused(options: dict[str, Any]) -> None:
    own_errors(lambda: EngineArgs(**options))


SANE_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["auto", "half", "float", "bfloat16", "float16", "fp8"]),
        "kv_cache_dtype": st.sampled_from(["auto", "float16", "bfloat16", "float32", "fp8", "int8", "nvfp4"]),
        "calculate_kv_scales": st.booleans(),
        "backend": st.sampled_from(["auto", "cpu", "reference", "triton"]),
        "max_model_len": st.sampled_from([None, "auto", -1, 1, 2, 17, 96, 97, "4k", 2**40]),
        "block_size": st.sampled_from([8, 16, 128, 1]),
        "num_gpu_blocks_override": st.sampled_from([None, 2, 3, 40, 2**62]),
        "kv_cache_memory_bytes": st.sampled_from([None, 1, 5000, "1M", 2**62]),
        "max_num_batched_tokens": st.sampled_from([None, 1, 5, 64]),
        "max_num_seqs": st.sampled_from([None, 1, 8, 64, 2**62]),
        "enable_chunked_prefill": st.booleans(),
        "enable_prefix_caching": st.booleans(),
        "long_prefill_token_threshold": st.sampled_from([0, 1, 7]),
        "scheduling_policy": st.sampled_from(["fcfs", "priority"]),
        "schedule_conservativeness": st.sampled_from([0, 0.5, 1, 1e300]),
        "max_bypasses": st.sampled_from([0, 3]),
        "async_scheduling": st.sampled_from([None, True, False]),
        "event_log_size": st.sampled_from([-1, 0, 1, 100]),
        "max_logprobs": st.sampled_from([-1, 0, 20]),
        "seed": st.sampled_from([0, -1, 2**63 - 1, -(2**63) + 1]),
        "tokenizer": st.sampled_from([None, "no/such/folder", ""]),
        "skip_tokenizer_init": st.booleans(),
        "chat_template": st.sampled_from([None, "{{ messages }}", "{% broken", "no/such/file", "\0"]),
        "load_format": st.sampled_from(["dummy", "auto", "gguf", "safetensors"]),
        "num_threads": st.sampled_from([1, 2]),
        "decode_context_parallel_size": st.sampled_from([1, 2]),
    },
)


@walk(40)
@given(options=SANE_OPTIONS)
def test_engines_are_made_and_answer_or_are_refused(folder: Path, options: dict[str, Any]) -> None:
    engine = own_errors(lambda: LLM(folder, **{"disable_log_stats": False, **BASE, **options}))
    if engine is not None:
        with engine:
            own_errors(lambda: engine.generate([[1, 2, 3], [5] * 20], SamplingParams(n=2, max_tokens=3)))
            own_errors(engine.get_metrics)
            assert engine.stats().num_used_blocks == 0


@walk(80)
@given(
    fields=st.dictionaries(st.sampled_from([*SamplingParams.__dataclass_fields__, *SAMPLING_FIELDS]), junk, max_size=4)
)
def test_parameters_are_taken_or_refused(fields: dict[str, Any]) -> None:
    params = own_errors(lambda: SamplingParams(**fields))
    if params is not None:
        for name, value in fields.items():
            params = own_errors(lambda params=params: params.clone()) or SamplingParams()
            own_errors(lambda params=params, name=name, value=value: setattr(params, name, value))
    own_errors(lambda: SamplingParams().replace(**fields))


IDS = st.integers(0, 269)
PARAMS = st.builds(
    lambda fields: own_errors(lambda: SamplingParams(**fields)),
    st.fixed_dictionaries(
        {},
        optional={
            "n": st.integers(1, 9),
            "temperature": st.sampled_from([0, 0.01, 1, 5.0]),
            "top_p": st.sampled_from([0.1, 0.9, 1]),
            "top_k": st.sampled_from([-1, 1, 5, 1000]),
            "min_p": st.sampled_from([0, 0.5, 1]),
            "presence_penalty": st.sampled_from([-2, 0, 2]),
            "frequency_penalty": st.sampled_from([-2, 0, 2]),
            "repetition_penalty": st.sampled_from([0.5, 1, 2]),
            "seed": st.sampled_from([None, -1, 7, -(2**63)]),
            "stop": st.sampled_from([None, "a", ["a", "hello"]]),
            "stop_token_ids": st.lists(IDS, max_size=3),
            "ignore_eos": st.booleans(),
            "max_tokens": st.sampled_from([1, 3, 8, 200, None]),
            "min_tokens": st.sampled_from([0, 1, 3]),
            "logprobs": st.sampled_from([None, 0, 3, 6, -1]),
            "prompt_logprobs": st.sampled_from([None, 0, 3, -1]),
            "detokenize": st.booleans(),
            "skip_special_tokens": st.booleans(),
            "include_stop_str_in_output": st.booleans(),
            "output_kind": st.sampled_from(RequestOutputKind),
            "logit_bias": st.dictionaries(IDS, st.floats(-100, 100), max_size=3),
            "allowed_token_ids": st.lists(IDS, min_size=1, max_size=4),
            "bad_words": st.lists(st.sampled_from(["a", "hello", " w", " "]), max_size=2),
            "truncate_prompt_tokens": st.sampled_from([None, -1, 1, 30]),
        },
    ),
)
PROMPT = st.one_of(
    st.lists(IDS, min_size=1, max_size=30),
    st.text(min_size=1, max_size=30),
    st.fixed_dictionaries({"prompt": texts}, optional={"cache_salt": texts}),
    st.fixed_dictionaries({"prompt_token_ids": st.lists(IDS, max_size=5)}),
)
PROMPTS = st.one_of(PROMPT, st.lists(PROMPT, max_size=3), junk)
MESSAGE = st.fixed_dictionaries({"role": texts, "content": st.one_of(texts, junk)})
MESSAGES = st.one_of(
    texts, MESSAGE, st.lists(MESSAGE, max_size=3), st.lists(st.lists(MESSAGE, max_size=2), max_size=2), junk
)
MORE = st.dictionaries(st.sampled_from(["priority", "use_tqdm", *CALL_ARGUMENTS]), junk, max_size=1)
TEMPLATE_NAMES = [
    "messages",
    "self",
    "chat_template",
    "tools",
    "add_generation_prompt",
    "tokenize",
    "bos_token",
    "role",
]
CHAT_MORE = st.fixed_dictionaries(
    {},
    optional={
        "chat_template": st.sampled_from([None, "{{ messages[0] }}", "{% broken", "no/such/file", "default", 3]),
        "add_generation_prompt": st.booleans(),
        "continue_final_message": st.booleans(),
        "tools": junk,
        "chat_template_kwargs": st.one_of(junk, st.dictionaries(st.sampled_from(TEMPLATE_NAMES), junk, max_size=3)),
    },
)


def check_sound(llm: LLM) -> None:
    stats = llm.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)


@walk(50)
@given(prompts=PROMPTS, params=st.one_of(PARAMS, st.lists(PARAMS, max_size=2), junk), more=MORE)
def test_prompts_are_answered_or_refused(llm: LLM, prompts: Any, params: Any, more: dict[str, Any]) -> None:
    outputs = own_errors(lambda: llm.generate(prompts, params, **more))
    for output in outputs or ():
        assert output.finished
        assert output.outputs
    check_sound(llm)


@walk(40)
@given(messages=MESSAGES, params=PARAMS, more=st.one_of(MORE, CHAT_MORE))
def test_conversations_are_answered_or_refused(llm: LLM, messages: Any, params: Any, more: dict[str, Any]) -> None:
    own_errors(lambda: llm.chat(messages, params, **more))
    check_sound(llm)


STEP = st.one_of(
    st.tuples(st.just("generate"), st.lists(PROMPT, min_size=1, max_size=3), PARAMS),
    st.tuples(st.just("stream"), st.lists(PROMPT, min_size=1, max_size=3), PARAMS, st.integers(0, 30)),
    st.tuples(st.just("nested"), PROMPT, PARAMS),
    st.tuples(st.sampled_from(["stats", "reset", "metrics", "events"])),
)


def take_step(llm: LLM, step: tuple[Any, ...]) -> None:
    name, *given = step
    if name == "generate":
        llm.generate(*given)
    elif name == "stream":
        prompts, params, count = given
        stream = llm.stream(prompts, params)
        for _ in zip(range(count), stream, strict=False):
            pass
    elif name == "nested":
        for number, _ in enumerate(llm.stream(*given)):
            if number < 3:
                llm.generate(*given)
    else:
        {"stats": llm.stats, "reset": llm.reset_prefix_cache, "metrics": llm.get_metrics}.get(
            name, lambda: list(llm.events)
        )()


def in_threads(works: list[Callable[[], None]]) -> list[BaseException]:
    """Run all at once -> the exceptions that are not our own."""
    raised: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            own_errors(work)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive(), "a thread hangs"
    return raised


@walk(8)
@given(plans=st.lists(st.lists(STEP, min_size=1, max_size=4), min_size=2, max_size=4))
def test_threads_harm_nobody(llm: LLM, plans: list[list[tuple[Any, ...]]]) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=6)
    (alone,) = llm.generate([[9, 8, 7, 6]], greedy)

    def follow(plan: list[tuple[Any, ...]]) -> None:
        for step in plan:
            own_errors(lambda step=step: take_step(llm, step))

    assert in_threads([lambda plan=plan: follow(plan) for plan in plans]) == []
    check_sound(llm)
    assert llm.generate([[9, 8, 7, 6]], greedy)[0].outputs[0].token_ids == alone.outputs[0].token_ids


@walk(8)
@given(plans=st.lists(st.lists(STEP, min_size=1, max_size=3), min_size=1, max_size=3), delay=st.floats(0, 0.02))
def test_closing_harms_nobody(folder: Path, plans: list[list[tuple[Any, ...]]], delay: float) -> None:
    engine = LLM(folder, **BASE)

    def follow(plan: list[tuple[Any, ...]]) -> None:
        for step in plan * 3:
            take_step(engine, step)

    def close() -> None:
        threading.Event().wait(delay)
        engine.close()

    assert in_threads([close, *(lambda plan=plan: follow(plan) for plan in plans)]) == []


@walk(8)
@given(
    asks=st.lists(st.tuples(PROMPT, PARAMS, st.integers(-1, 12)), min_size=1, max_size=4),
    aborts=st.lists(st.one_of(st.integers(0, 4).map(str), junk), max_size=2),
)
def test_coroutines_harm_nobody(async_llm: AsyncLLM, asks: list[tuple[Any, Any, int]], aborts: list[Any]) -> None:
    async def ask(number: int, prompt: Any, params: Any, count: int) -> None:
        try:
            async for _ in async_llm.generate(prompt, params, str(number)):
                if count == 0:
                    break
                count -= 1
        except OctavoError as error:
            check_told(error)

    async def abort(request_ids: Any) -> None:
        try:
            await async_llm.abort(request_ids)
        except OctavoError as error:
            check_told(error)

    async def everything() -> None:
        await asyncio.gather(*(ask(n, *one) for n, one in enumerate(asks)), *(abort(one) for one in aborts))
        await async_llm.check_health()

    asyncio.run(asyncio.wait_for(everything(), LIMIT))


@pytest.fixture(scope="module")
def async_llm(folder: Path) -> Iterator[AsyncLLM]:
    engine = AsyncLLM(folder, **BASE)
    yield engine
    engine.shutdown()
