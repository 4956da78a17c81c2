"""Popular client libraries against a real server and a real model: their answers are the offline engine's."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import ollama
import openai
import pydantic
import pytest

from octavo import LLM, AsyncLLM, SamplingParams
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings
from tests.server.live_server import serve

if TYPE_CHECKING:  # it takes seconds, which each worker of pytest-xdist would spend to collect the tests
    import anthropic

MODEL = "smollm2"
PROMPTS = ["The capital of France is", "One, two, three,"]
CHAT = [{"role": "user", "content": "Name a colour."}]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
#: shorter than the answer on any backend: whether it ends after its first sentence or its second depends on the last
#: bits of their logits
CHAT_LEN = 5
SIZES = {"max_model_len": 256, "max_num_seqs": 8, "num_threads": 1}


@pytest.fixture(scope="module")
def offline() -> dict[str, str]:
    """LLM's answers to each prompt and to the chat."""
    with LLM(MODEL, **SIZES) as llm:
        texts = {one.prompt or "": one.outputs[0].text for one in llm.generate(PROMPTS, GREEDY, use_tqdm=False)}
        texts["chat"] = llm.chat(CHAT, GREEDY.replace(max_tokens=CHAT_LEN), use_tqdm=False)[0].outputs[0].text
    return texts


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncLLM]:
    llm = AsyncLLM(MODEL, **SIZES)
    yield llm
    llm.shutdown()


@pytest.fixture(scope="module")
def address(engine: AsyncLLM) -> Iterator[str]:
    with serve(create_app(engine, ServerSettings(served_model_name=(MODEL,), api_key=("sesame",)))) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="sesame", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def claude(address: str) -> Iterator[anthropic.Anthropic]:
    import anthropic

    with anthropic.Anthropic(base_url=address, api_key="sesame", max_retries=0, timeout=60) as made:
        yield made


def test_completions_say_what_the_offline_engine_says(client: openai.OpenAI, offline: dict[str, str]) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPTS, temperature=0, max_tokens=12)
    assert [choice.text for choice in answer.choices] == [offline[prompt] for prompt in PROMPTS]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24


def test_streamed_completions_do_too(client: openai.OpenAI, offline: dict[str, str]) -> None:
    texts = ["", ""]
    stream = client.completions.create(
        model=MODEL,
        prompt=PROMPTS,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [offline[prompt] for prompt in PROMPTS]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24
    assert len(chunks) > 12, "one chunk a token, more or less"


def test_token_ids_say_what_their_text_says(client: openai.OpenAI, offline: dict[str, str], engine: AsyncLLM) -> None:
    tokenizer = engine.get_tokenizer()
    assert tokenizer is not None
    ids = tokenizer.encode(PROMPTS[0])
    answer = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=12, echo=True, logprobs=2)
    choice = answer.choices[0]
    assert choice.text == PROMPTS[0] + offline[PROMPTS[0]]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset == [len("".join(choice.logprobs.tokens[:i])) for i in range(len(ids) + 12)]
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None


def test_tokens_are_scored_by_id(client: openai.OpenAI, engine: AsyncLLM) -> None:
    tokenizer = engine.get_tokenizer()
    assert tokenizer is not None
    labels = [tokenizer.encode(text)[0] for text in (" Paris", " Rome")]
    body = {"logprob_token_ids": labels, "return_tokens_as_token_ids": True}
    answer = client.completions.create(
        model=MODEL, prompt=PROMPTS[0], temperature=0, max_tokens=1, logprobs=1, extra_body=body
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.top_logprobs
    scores = logprobs.top_logprobs[0]
    assert set(scores) >= {f"token_id:{one}" for one in labels}
    assert scores[f"token_id:{labels[0]}"] > scores[f"token_id:{labels[1]}"]


def test_chats_say_what_the_offline_engine_says(client: openai.OpenAI, offline: dict[str, str]) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=CHAT,  # type: ignore[arg-type]
        temperature=0,
        max_completion_tokens=CHAT_LEN,
        logprobs=True,
        top_logprobs=2,
    )
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role) == (offline["chat"], "assistant")
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(one.token for one in choice.logprobs.content) == offline["chat"]
    assert all(one.logprob == one.top_logprobs[0].logprob for one in choice.logprobs.content), "greedy takes the best"


def test_streamed_chats_do_too_and_samples_share_the_prompt(client: openai.OpenAI, offline: dict[str, str]) -> None:
    texts = ["", ""]
    stream = client.chat.completions.create(
        model=MODEL,
        messages=CHAT,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=CHAT_LEN,
        n=2,
        stream=True,
    )
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [offline["chat"]] * 2


def test_stop_strings_end_an_answer_and_are_cut(client: openai.OpenAI, offline: dict[str, str]) -> None:
    whole = offline[PROMPTS[0]]
    stop = whole[8:11]
    expected = whole[: whole.index(stop)]
    answer = client.completions.create(model=MODEL, prompt=PROMPTS[0], temperature=0, max_tokens=12, stop=[stop])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected, "stop")
    streamed = client.completions.create(
        model=MODEL, prompt=PROMPTS[0], temperature=0, max_tokens=12, stop=stop, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected


def test_calls_at_once_may_bring_one_id(client: openai.OpenAI, offline: dict[str, str]) -> None:
    """As from a proxy that gives all calls of a page the same id, and from clients that retry."""
    known_as = {"X-Request-Id": "a-page"}
    first = client.completions.create(
        model=MODEL,
        prompt=PROMPTS,
        max_tokens=200,
        stream=True,
        extra_headers=known_as,
        extra_body={"ignore_eos": True},
    )
    next(iter(first))
    second = client.completions.create(
        model=MODEL, prompt=PROMPTS, temperature=0, max_tokens=12, extra_headers=known_as
    )
    assert [choice.text for choice in second.choices] == [offline[prompt] for prompt in PROMPTS]
    assert second.id == "cmpl-a-page"
    assert all(chunk.id == second.id for chunk in first)


def test_a_begun_answer_is_continued(client: openai.OpenAI, offline: dict[str, str]) -> None:
    begun = " ".join(offline["chat"].split(" ")[:2])
    rest = offline["chat"].removeprefix(begun)
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[*CHAT, {"role": "assistant", "content": begun}],  # type: ignore[list-item]
        temperature=0,
        max_tokens=2,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert answer.choices[0].message.content
    assert rest.startswith(answer.choices[0].message.content)


def test_a_forced_call_reaches_openais_client(client: openai.OpenAI, engine: AsyncLLM) -> None:
    """The model's template knows no tools, so its prompt tells them in words."""
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Weather in Oslo?"}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": schema, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_tokens": 60,
    }
    choice = client.chat.completions.create(**asked).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0]
    assert json.loads(final.message.tool_calls[0].function.arguments)["city"] in ("Rome", "Oslo")


def test_responses_say_what_the_offline_engine_says(client: openai.OpenAI, offline: dict[str, str]) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "Name a colour.", "temperature": 0, "max_output_tokens": CHAT_LEN}
    response = client.responses.create(**asked, include=["message.output_text.logprobs"], top_logprobs=2)
    assert response.output_text == offline["chat"]
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage.output_tokens == CHAT_LEN
    assert "".join(one.token for one in response.output[0].content[0].logprobs) == offline["chat"]
    events = list(client.responses.create(**asked, stream=True))
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == offline["chat"]
    assert [one.sequence_number for one in events] == list(range(len(events)))
    assert events[-1].response.output_text == offline["chat"]


def test_responses_are_continued_read_listed_and_deleted(client: openai.OpenAI, engine: AsyncLLM) -> None:
    short: dict[str, Any] = {"model": MODEL, "max_output_tokens": 4}
    first = client.responses.create(input="Name a colour.", instructions="Be brief.", metadata={"a": "b"}, **short)
    second = client.responses.create(input="Another?", previous_response_id=first.id, **short)
    assert second.usage.input_tokens > first.usage.output_tokens
    assert client.responses.retrieve(first.id) == first
    assert client.responses.retrieve(first.id).metadata == {"a": "b"}
    items = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    assert [one.role for one in items] == ["user", "assistant", "user"]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="previous_response_id is"):
        client.responses.create(input="Another?", previous_response_id=second.id, **short)
    begun = client.responses.create(
        model=MODEL, input="Tell a story.", background=True, extra_body={"ignore_eos": True}
    )
    assert begun.status == "queued"
    assert client.responses.cancel(begun.id).status == "cancelled"
    assert client.responses.retrieve(begun.id).status == "cancelled"
    _until_idle(engine)


class City(pydantic.BaseModel):
    city: Literal["Rome", "Oslo"]


def test_forms_and_forced_calls_reach_the_responses_client(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "Weather in Oslo?", "max_output_tokens": 60}
    assert client.responses.parse(**asked, text_format=City).output_parsed.city in ("Rome", "Oslo")
    tool = openai.pydantic_function_tool(City, name="weather")["function"]
    asked |= {"tools": [{"type": "function", **tool}], "tool_choice": {"type": "function", "name": "weather"}}
    (call,) = client.responses.parse(**asked).output
    assert (call.type, call.name) == ("function_call", "weather")
    assert call.parsed_arguments["city"] in ("Rome", "Oslo")
    with client.responses.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        (streamed,) = stream.get_final_response().output
    assert "response.function_call_arguments.delta" in kinds
    assert json.loads(streamed.arguments)["city"] in ("Rome", "Oslo")
    sent_back: list[Any] = [
        {"role": "user", "content": "Weather in Oslo?"},
        streamed,
        {"type": "function_call_output", "call_id": streamed.call_id, "output": "Rain"},
    ]
    assert client.responses.create(model=MODEL, input=sent_back, max_output_tokens=4).output_text


def test_claudes_client_hears_the_same(claude: anthropic.Anthropic, offline: dict[str, str]) -> None:
    options = {"model": MODEL, "max_tokens": CHAT_LEN, "messages": CHAT, "extra_body": {"temperature": 0}}
    message = claude.messages.create(**options)  # type: ignore[call-overload]
    assert message.content[0].text == offline["chat"]
    assert message.stop_reason == "max_tokens"
    with claude.messages.stream(**options) as stream:  # type: ignore[arg-type]
        assert "".join(stream.text_stream) == offline["chat"]
        final = stream.get_final_message()
    assert final.usage.output_tokens == CHAT_LEN
    assert final.stop_reason == "max_tokens"


def test_ollamas_client_hears_the_same(address: str, offline: dict[str, str]) -> None:
    client = ollama.Client(host=address, headers={"Authorization": "Bearer sesame"})
    whole = client.chat(MODEL, CHAT, options={"temperature": 0, "num_predict": CHAT_LEN})
    assert whole.message.content == offline["chat"]
    assert (whole.done_reason, whole.eval_count) == ("length", CHAT_LEN)
    assert 0 < (whole.eval_duration or 0) < (whole.total_duration or 0)
    streamed = client.generate(MODEL, PROMPTS[0], raw=True, stream=True, options={"temperature": 0, "num_predict": 12})
    assert "".join(part.response for part in streamed) == offline[PROMPTS[0]]


def test_claudes_client_stops_counts_and_runs_out_of_context(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model=MODEL, messages=CHAT, system="Be brief.")  # type: ignore[arg-type]
    assert counted.input_tokens > 10
    long = claude.messages.create(
        model=MODEL,
        max_tokens=4096,
        messages=[{"role": "user", "content": "word " * 210}],
        stop_sequences=["\u4e0d\u53ef\u80fd"],
    )
    assert long.stop_reason in ("model_context_window_exceeded", "end_turn")
    assert long.usage.input_tokens + long.usage.cache_read_input_tokens + long.usage.output_tokens <= 256


def claude_refuses() -> type[Exception]:
    import anthropic

    return anthropic.BadRequestError


def test_errors_are_the_clients_own(client: openai.OpenAI, claude: anthropic.Anthropic, address: str) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature is -1") as refused:
        client.completions.create(model=MODEL, prompt="a", temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=MODEL, prompt="word " * 300)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=f"{address}/v1", api_key="open") as other:
        other.models.list()
    with pytest.raises(claude_refuses(), match="not known to think"):
        claude.messages.create(
            model=MODEL,
            max_tokens=4,
            messages=[{"role": "user", "content": "Hi"}],
            thinking={"type": "enabled", "budget_tokens": 2},
        )
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize("num_samples", [1, 2])
def test_leaving_a_stream_frees_its_blocks(client: openai.OpenAI, engine: AsyncLLM, num_samples: int) -> None:
    stream = client.completions.create(
        model=MODEL,
        prompt="Once upon a time",
        max_tokens=200,
        n=num_samples,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    assert asyncio.run(engine.stats()).num_running == num_samples
    stream.close()
    _until_idle(engine)


def test_leaving_before_a_whole_answer_frees_its_blocks(address: str, engine: AsyncLLM) -> None:
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="sesame", max_retries=0, timeout=0.3) as hasty,
        pytest.raises(openai.APITimeoutError),
    ):
        hasty.completions.create(model=MODEL, prompt="Once", max_tokens=250, extra_body={"ignore_eos": True})
    _until_idle(engine)


def _until_idle(engine: AsyncLLM) -> None:
    """Wait until nothing runs, long before 200 tokens would have been generated."""
    begin = time.monotonic()
    while time.monotonic() - begin < 10:
        stats = asyncio.run(engine.stats())
        if stats.num_running == stats.num_waiting == stats.num_used_blocks == 0:
            return
        time.sleep(0.01)
    raise AssertionError(f"the engine never came to rest: {stats}")


def test_an_answer_that_repeats_itself_ends(client: openai.OpenAI) -> None:
    """Of one token, as no other is allowed."""
    loops: dict[str, object] = {"max_pattern_size": 3, "min_count": 4}
    asked: dict[str, Any] = {"model": MODEL, "extra_body": {"allowed_token_ids": [28], "repetition_detection": loops}}
    whole = client.completions.create(prompt=PROMPTS[0], max_tokens=9, **asked)
    assert (whole.choices[0].finish_reason, whole.choices[0].text) == ("repetition", ",,,,")
    assert whole.choices[0].stop_reason == "repetition_detected"
    *_, last = client.chat.completions.create(messages=CHAT, max_tokens=9, stream=True, **asked)
    assert last.choices[0].finish_reason == "repetition"
    response = client.responses.create(input="Hi", max_output_tokens=9, store=False, **asked)
    assert response.incomplete_details is not None
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "repetition")
    assert response.output_text == ",,,,"


def test_openais_client_searches(client: openai.OpenAI) -> None:
    """A stream has the same beams as a whole answer, and they are those of the engine itself."""
    beams: dict[str, object] = {"use_beam_search": True, "best_of": 3, "length_penalty": 0.5}
    asked: dict[str, Any] = {"model": MODEL, "prompt": PROMPTS[0], "n": 2, "max_tokens": 6, "extra_body": beams}
    whole = client.completions.create(**asked)
    streamed: dict[int, str] = {}
    for chunk in client.completions.create(**asked, stream=True):
        for one in chunk.choices:
            streamed[one.index] = streamed.get(one.index, "") + one.text
    assert [streamed[one.index] for one in whole.choices] == [one.text for one in whole.choices]
    params = SamplingParams(use_beam_search=True, n=2, best_of=3, length_penalty=0.5, max_tokens=6)
    with LLM(MODEL, **SIZES) as llm:
        (output,) = llm.generate([PROMPTS[0]], params, use_tqdm=False)
    assert [one.text for one in output.outputs] == [one.text for one in whole.choices]
