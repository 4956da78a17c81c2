"""Random calls that follow our own schema: the server answers every one and never fails."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis

from octavo.server.app import OPTIONAL_ROUTES, ROUTES
from octavo.server.bodies import NO_EFFECT
from octavo.server.field_meanings import MEANINGS, meaning
from octavo.server.openapi import request_structs
from octavo.server.protocol import ChatCompletionRequest, CompletionRequest
from octavo.server.settings import ServerSettings
from tests.server.live_server import serve
from tests.server.scripted_engine import ScriptedEngine, app_of, get

#: batches of conversations take seconds to generate; their fields are those of one conversation, see test_fuzz.py
APART = frozenset({"/", "/v1/chat/completions/batch"})
CALLS = [(method, path.replace(":path", "")) for method, path, _ in (*ROUTES, *OPTIONAL_ROUTES) if path not in APART]
HI = [{"role": "user", "content": "Hi"}]
SETTINGS = hypothesis.settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate],
)


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    with serve(
        app_of(ScriptedEngine(), trust_request_chat_template=True, enable_tokenizer_info_endpoint=True)
    ) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_no_call_makes_the_server_fail(schema: Any, method: str, path: str) -> None:
    operation = schema[path][method]

    @SETTINGS
    @hypothesis.given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
    def call(case: Any) -> None:
        response = case.call(timeout=20)
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert "error" in response.json()

    call()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Hi", "echo": True, "logprobs": 2, "return_token_ids": True}),
        ("/v1/completions", {"prompt": [4, 5], "prompt_logprobs": 2}),
        ("/v1/chat/completions", {"messages": HI, "logprobs": True, "prompt_logprobs": 1, "return_token_ids": True}),
        ("/v1/chat/completions/batch", {"messages": [HI, HI], "logprobs": True}),
        ("/v1/messages", {"messages": HI, "max_tokens": 3}),
        ("/v1/messages/count_tokens", {"messages": HI}),
        ("/v1/sessions", {"prompt": "Hi"}),
        ("/tokenize", {"prompt": "Hi", "return_token_strs": True}),
        ("/detokenize", {"tokens": [5]}),
    ],
)
def test_answers_are_as_the_schema_says(schema: Any, path: str, body: object) -> None:
    case = schema[path]["POST"].Case(body=body, media_type="application/json")
    conforms = schemathesis.checks.CHECKS.get_one("response_schema_conformance")
    assert case.call_and_validate(checks=[conforms]).status_code == 200


def test_every_route_is_in_the_schema() -> None:
    paths = get(app_of(), "/openapi.json").json()["paths"]
    for method, path, _ in ROUTES:
        assert method.lower() in paths[path.replace(":path", "")], path


def test_docs_explain_each_field_of_each_request() -> None:
    fields = [(kind, name) for kind in request_structs() for name in kind.__struct_fields__]
    assert [f"{kind.__name__}.{name}" for kind, name in fields if not meaning(kind, name)] == []
    assert {key.rpartition(".")[2] for key in MEANINGS} <= {name for _, name in fields}, "meanings of what is gone"
    page = get(app_of(), "/docs").body.decode()
    assert [name for kind, name in fields if html.escape(meaning(kind, name) or "") not in page] == []
    schemas = get(app_of(), "/openapi.json").json()["components"]["schemas"]
    for kind, name in fields:
        assert schemas[kind.__name__]["properties"][name]["description"] == meaning(kind, name)


def test_every_field_and_setting_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/server.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([a-z_]+)`", page))
    fields = {name for kind in (CompletionRequest, ChatCompletionRequest) for name in kind.__struct_fields__}
    settings = {field.name for field in dataclasses.fields(ServerSettings)}
    assert fields | settings | NO_EFFECT <= told, sorted((fields | settings | NO_EFFECT) - told)
    for _, path, _ in (*ROUTES, *OPTIONAL_ROUTES):
        assert path.replace("{model:path}", "NAME") in page, path
