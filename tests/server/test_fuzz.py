"""Every field of every request, with values that no client should send: the server answers or refuses."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo.lora_request import LoRARequest
from octavo.pooling_params import PooledForm
from octavo.request import ModelInfo
from octavo.server.anthropic_protocol import AnthropicMessage, MessagesRequest
from octavo.server.bodies import NEUTRAL
from octavo.server.ollama_protocol import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaOptions,
    OllamaRequest,
    OllamaShowRequest,
)
from octavo.server.openapi import request_structs
from octavo.server.pooling_protocol import (
    ClassifyRequest,
    EmbeddingRequest,
    NumbersRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from octavo.server.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    LoadLoRARequest,
    StreamOptions,
    TokenizeRequest,
    UnloadLoRARequest,
)
from octavo.server.responses.protocol import ReasoningOptions, ResponsesRequest, ResponseStreamOptions, TextOptions
from octavo.server.session_protocol import (
    SessionExtendRequest,
    SessionForkRequest,
    SessionGenerateRequest,
    SessionPruneRequest,
    SessionRequest,
)
from tests.server.scripted_embedder import ScriptedEmbedder
from tests.server.scripted_engine import Answer, ScriptedEngine, app_of, call

HI = [{"role": "user", "content": "Hi"}]
TEXT = {"prompt": "Hi", "max_tokens": 2}
RESPONSE = {"input": "Hi", "max_output_tokens": 2}
OLLAMA = {"model": "tiny", "stream": False}

#: route, a valid body, where in it the struct's fields are, the struct, a base struct whose fields are tried elsewhere
PLACES: tuple[tuple[str, dict[str, Any], tuple[str | int, ...], type, type | None], ...] = (
    ("/v1/completions", TEXT, (), CompletionRequest, None),
    ("/v1/completions", TEXT | {"stream": True, "stream_options": {}}, ("stream_options",), StreamOptions, None),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": 2}, (), ChatCompletionRequest, GenerationRequest),
    ("/v1/chat/completions/batch", {"messages": [HI]}, (), BatchChatCompletionRequest, ChatCompletionRequest),
    ("/v1/messages", {"messages": HI, "max_tokens": 2}, (), MessagesRequest, None),
    ("/v1/messages", {"messages": HI, "max_tokens": 2}, ("messages", 0), AnthropicMessage, None),
    ("/v1/embeddings", {"input": "Hi"}, (), EmbeddingRequest, None),
    ("/pooling", {"input": "Hi"}, (), NumbersRequest, EmbeddingRequest),
    ("/classify", {"input": "Hi"}, (), ClassifyRequest, PoolingRequest),
    ("/v1/score", {"text_1": "Hi", "text_2": ["a", "b"]}, (), ScoreRequest, PoolingRequest),
    ("/v1/rerank", {"query": "Hi", "documents": ["a", "b"]}, (), RerankRequest, PoolingRequest),
    ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "data"}, (), LoadLoRARequest, None),
    ("/v1/unload_lora_adapter", {"lora_name": "sql"}, (), UnloadLoRARequest, None),
    ("/tokenize", {"prompt": "Hi"}, (), TokenizeRequest, None),
    ("/detokenize", {"tokens": [5]}, (), DetokenizeRequest, None),
    ("/api/chat", OLLAMA | {"messages": HI}, (), OllamaChatRequest, None),
    ("/api/chat", OLLAMA | {"messages": HI, "options": {}}, ("options",), OllamaOptions, None),
    ("/api/generate", OLLAMA | {"prompt": "Hi"}, (), OllamaGenerateRequest, OllamaRequest),
    ("/v1/responses", RESPONSE, (), ResponsesRequest, GenerationRequest),
    ("/v1/responses", RESPONSE | {"reasoning": {}}, ("reasoning",), ReasoningOptions, None),
    ("/v1/responses", RESPONSE | {"text": {}}, ("text",), TextOptions, None),
    (
        "/v1/responses",
        RESPONSE | {"stream": True, "stream_options": {}},
        ("stream_options",),
        ResponseStreamOptions,
        None,
    ),
    ("/v1/sessions", {"prompt": "Hi"}, (), SessionRequest, None),
    ("/v1/sessions/none/fork", {"n": 2}, (), SessionForkRequest, None),
    ("/v1/sessions/none/extend", {"text": "Hi"}, (), SessionExtendRequest, None),
    ("/v1/sessions/none/prune", {"branch": 0}, (), SessionPruneRequest, None),
    ("/v1/sessions/none/generate", {}, (), SessionGenerateRequest, GenerationRequest),
    ("/api/show", {"model": "tiny"}, (), OllamaShowRequest, None),
    ("/api/embed", {"model": "tiny", "input": "Hi"}, (), OllamaEmbedRequest, None),
    ("/api/embeddings", {"model": "tiny", "prompt": "Hi"}, (), OllamaEmbeddingsRequest, OllamaEmbedRequest),
)
#: as JSON text, since json.dumps would not write all of them
VALUES = (
    *("null", "true", "false", "0", "1", "-1", "2", "0.5", "-0.0", "1e308", "-1e308", "1e400", "5e-324"),
    *("2147483648", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1" + "0" * 400),
    *('""', '"a"', '"left"', '"\\u0000"', '"\\ud800"', '"\\ufeff\\u202e"', json.dumps("x" * 5000), '"NaN"', "NaN"),
    *("[]", "[0]", "[-1]", "[1e30]", "[null]", '["a"]', '[""]', "[[]]", '["\\ud800"]', "[" * 200 + "]" * 200),
    *("{}", '{"a": 1}', '{"5": 1e308}', '{"-1": 0}', '{"type": "text"}', '[{"role": "user"}]', '[{"role": 1}]'),
    *('[{"role": "user", "content": []}]', '[{"role": "user", "content": [{"type": "text", "text": 1}]}]'),
    '[[{"role": "x", "content": "y", "tool_calls": [{"function": {"arguments": "{"}}]}]]',
)


def with_value(body: dict[str, Any], place: tuple[str | int, ...], field: str, value: str) -> bytes:
    """The body with the field replaced by a JSON text."""
    made = json.loads(json.dumps(body))
    inside = made
    for step in place:
        inside = inside[step]
    inside[field] = "@@"
    return json.dumps(made).replace('"@@"', value).encode()


class AdaptableEngine(ScriptedEngine):
    """Has an adapter, and a folder from which it might load others."""

    @property
    def model_info(self) -> ModelInfo:
        return replace(super().model_info, enable_lora=True, lora_root=str(Path(__file__).parents[1]))

    async def adapters(self) -> list[LoRARequest]:
        return [LoRARequest("sql", 1, "sql")]


ENGINES = {
    **dict.fromkeys(("/v1/load_lora_adapter", "/v1/unload_lora_adapter"), AdaptableEngine),
    **dict.fromkeys(("/v1/embeddings", "/pooling", "/v1/rerank", "/api/embed", "/api/embeddings"), ScriptedEmbedder),
    "/classify": partial(ScriptedEmbedder, form=PooledForm(size=3, tasks=("classify",), labels=("a", "b", "c"))),
    "/v1/score": partial(ScriptedEmbedder, form=PooledForm(size=1, tasks=("classify",), labels=("a",))),
}


async def send_all(path: str, bodies: list[bytes]) -> list[Answer]:
    engine = ENGINES.get(path, ScriptedEngine)()
    app = app_of(engine)
    answers = [await call(app, "POST", path, body, {"content-type": "application/json"}) for body in bodies]
    assert engine.live == 0
    return answers


def check(path: str, bodies: list[bytes]) -> None:
    for body, answer in zip(bodies, asyncio.run(send_all(path, bodies)), strict=True):
        told = f"{path} {body[:300]!r}: {answer.status} {answer.body[:300]!r}"
        if answer.status == 200:
            assert b'"error":' not in answer.body or b'"error":null' in answer.body, told
            continue
        assert 400 <= answer.status < 500, told
        error = answer.json()["error"]
        message = error if isinstance(error, str) else error["message"]
        assert len(message) > 10, told
        assert "Traceback" not in message, told


@pytest.mark.parametrize(("path", "body", "place", "kind", "tried"), PLACES)
def test_every_field_takes_any_value_or_refuses_it(
    path: str, body: dict[str, Any], place: tuple[str | int, ...], kind: type[msgspec.Struct], tried: type | None
) -> None:
    fields = set(kind.__struct_fields__) - set(getattr(tried, "__struct_fields__", ())) | {"messages", "unknown"}
    fields &= {*kind.__struct_fields__, "unknown"}
    check(path, [with_value(body, place, field, value) for field in sorted(fields) for value in VALUES])


def test_every_struct_is_tried() -> None:
    tried = {kind for _, _, _, kind, _ in PLACES}
    inherited = {base for kind in tried for base in kind.__mro__}
    assert [kind for kind in request_structs() if kind not in tried | inherited] == []


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_what_others_know_is_taken_or_refused(path: str) -> None:
    body = TEXT if path == "/v1/completions" else {"messages": HI, "max_tokens": 2}
    check(path, [with_value(body, (), field, value) for field in sorted(NEUTRAL) for value in VALUES[::6]])


@pytest.mark.parametrize(("path", "body", "place", "kind", "tried"), [one for one in PLACES if not one[2]])
def test_fields_together(
    path: str, body: dict[str, Any], place: tuple[str | int, ...], kind: type[msgspec.Struct], tried: type | None
) -> None:
    """Values that are accepted alone may fail together: sixty bodies with a few fields each, the same in every run."""
    draw = random.Random(path)
    bodies = []
    for _ in range(60):
        made = dict.fromkeys(draw.sample(kind.__struct_fields__, min(4, len(kind.__struct_fields__))))
        whole = body | {field: f"@{field}@" for field in made if field not in ("prompt", "messages", "model")}
        text = json.dumps(whole)
        for field in made:
            text = text.replace(f'"@{field}@"', draw.choice(VALUES))
        bodies.append(text.encode())
    check(path, bodies)
