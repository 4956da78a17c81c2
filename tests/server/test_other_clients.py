"""instructor, LangChain and LiteLLM, unchanged, against a real server and a real model: tools, forms, streams.

Grammars force the calls and forms, so that even a small model's answers have them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal

import openai
import pydantic
import pytest

from octavo import AsyncLLM
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings
from tests.server.live_server import serve

pytestmark = pytest.mark.clients

MODEL, KEY = "smollm2", "sesame"
HI = [{"role": "user", "content": "How is the weather in Rome?"}]


def needs(package: str) -> pytest.MarkDecorator:
    """Found out before the model is loaded."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}: make clients")


class Report(pydantic.BaseModel):
    """The weather somewhere."""

    city: Literal["Rome", "Oslo"]
    sky: Literal["clear", "grey"]


CALLED = {
    "type": "function",
    "function": {"name": "Report", "description": "Tells it.", "parameters": Report.model_json_schema()},
}


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    llm = AsyncLLM(MODEL, max_model_len=1024, max_num_seqs=4, num_threads=1)
    settings = ServerSettings(served_model_name=(MODEL,), api_key=(KEY,), tool_call_parser="hermes")
    with serve(create_app(llm, settings)) as address:
        yield f"{address}/v1"
    llm.shutdown()


@needs("instructor")
@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor_gets_its_models(base_url: str, mode: str) -> None:
    instructor = importlib.import_module("instructor")
    with openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0) as plain:
        client = instructor.from_openai(plain, mode=instructor.Mode[mode])
        asked = {"model": MODEL, "messages": HI, "temperature": 0, "max_tokens": 60, "max_retries": 0}
        assert isinstance(client.create(response_model=Report, **asked), Report)
        *_, last = client.create_partial(response_model=Report, **asked)
        assert Report.model_validate(last.model_dump())


@needs("langchain_openai")
def test_langchain_calls_tools_and_fills_forms(base_url: str) -> None:
    langchain = importlib.import_module("langchain_openai")
    given: dict[str, Any] = {"base_url": base_url, "api_key": KEY, "model": MODEL, "temperature": 0, "max_tokens": 60}
    chat = langchain.ChatOpenAI(**given, max_retries=0)
    whole = chat.invoke("Name a colour.", max_tokens=8)
    assert whole.usage_metadata["output_tokens"] == 8
    assert "".join(one.content for one in chat.stream("Name a colour.", max_tokens=8)) == whole.content
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(Report, method=method).invoke("Weather in Rome?"), Report)
    caller = chat.bind_tools([Report], tool_choice="required", parallel_tool_calls=False)
    (call,) = caller.invoke("Weather in Rome?").tool_calls
    streamed = None
    for one in caller.stream("Weather in Rome?"):
        streamed = one if streamed is None else streamed + one
    assert streamed is not None
    assert [(one["name"], one["args"]) for one in streamed.tool_calls] == [(call["name"], call["args"])]
    assert Report(**call["args"])
    responses = langchain.ChatOpenAI(**given, max_retries=0, use_responses_api=True)
    assert responses.invoke("Name a colour.").content


@needs("litellm")
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_calls_tools_and_fills_forms(base_url: str, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the net for prices
    litellm = importlib.import_module("litellm")
    asked: dict[str, Any] = {
        **{"model": f"{provider}/{MODEL}", "api_base": base_url, "api_key": KEY, "messages": HI, "temperature": 0},
        "max_tokens": 60,
    }
    whole = litellm.completion(**{**asked, "max_tokens": 8})
    assert whole.usage.completion_tokens == 8
    pieces = [
        one.choices[0].delta.content or "" for one in litellm.completion(**{**asked, "max_tokens": 8}, stream=True)
    ]
    assert "".join(pieces) == whole.choices[0].message.content
    filled = litellm.completion(**asked, response_format=Report)
    assert Report.model_validate_json(filled.choices[0].message.content)
    asked |= {"tools": [CALLED], "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = litellm.completion(**asked).choices[0].message.tool_calls
    assert Report.model_validate_json(call.function.arguments)
    chunks = list(litellm.completion(**asked, stream=True))
    joined = litellm.stream_chunk_builder(chunks, messages=HI).choices[0]
    assert joined.finish_reason == "tool_calls"
    assert joined.message.tool_calls[0].function.arguments == call.function.arguments
