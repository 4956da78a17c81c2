"""Structured output over HTTP: the fields of each API, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo import AsyncLLM
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings
from tests.conftest import TinyFolder
from tests.server.live_server import serve
from tests.structured.spelling_model import spelling_model

SCHEMA = {
    "type": "object",
    "properties": {"age": {"enum": [12, 7]}},
    "required": ["age"],
    "additionalProperties": False,
}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def client(tiny_folder: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = spelling_model(tiny_folder, tmp_path_factory.mktemp("structured"))
    llm = AsyncLLM(str(folder), dtype="float32", max_model_len=128, max_num_seqs=8, chat_template=TEMPLATE)
    app = create_app(llm, ServerSettings(served_model_name=("tiny",)))
    with serve(app) as address, httpx.Client(base_url=address, timeout=60) as made:
        yield made
    llm.shutdown()


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, json={"model": "tiny", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


FORMATS: list[dict[str, Any]] = [
    {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
    {"structured_outputs": {"json": json.dumps(SCHEMA), "whitespace_pattern": " ?"}},
    {"structured_outputs": {"regex": r'\{"age":(12|7)\}'}},
    {"structured_outputs": {"choice": ['{"age": 12}']}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "structured_outputs": {}},
]


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_an_answer_has_the_form(client: httpx.Client, format: dict[str, Any]) -> None:
    given = {"max_tokens": 60, "logit_bias": {"108": 0.0}, "seed": 1, **format}
    answers = [
        post(client, "/v1/completions", prompt="Hi", **given)["choices"][0]["text"],
        post(client, "/v1/chat/completions", messages=HI, **given)["choices"][0]["message"]["content"],
    ]
    for text in answers:
        assert json.loads(text)["age"] in (12, 7)


def test_a_stream_has_the_form(client: httpx.Client) -> None:
    given = {"model": "tiny", "prompt": "Hi", "stream": True, "max_tokens": 60, **FORMATS[0]}
    lines = client.post("/v1/completions", json=given).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert json.loads(text)["age"] in (12, 7)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_json_object_and_text(client: httpx.Client) -> None:
    given = {"prompt": "Hi", "max_tokens": 20, "temperature": 0}
    text = post(client, "/v1/completions", response_format={"type": "json_object"}, **given)["choices"][0]["text"]
    assert text.startswith("{")
    free = post(client, "/v1/completions", **given)["choices"][0]["text"]
    assert post(client, "/v1/completions", response_format={"type": "text"}, **given)["choices"][0]["text"] == free


def test_ollamas_format(client: httpx.Client) -> None:
    given = {"stream": False, "messages": HI, "options": {"num_predict": 60, "seed": 2}}
    assert json.loads(post(client, "/api/chat", format=SCHEMA, **given)["message"]["content"])["age"] in (12, 7)
    assert post(client, "/api/chat", format="json", **given)["message"]["content"].startswith("{")
    refused = client.post("/api/chat", json={"model": "tiny", **given, "format": "xml"})
    assert (refused.status_code, "'xml'" in refused.text) == (400, True)
    refused = client.post("/api/chat", json={"model": "tiny", **given, "format": {"uniqueItems": True}})
    assert (refused.status_code, "uniqueItems" in refused.text) == (400, True)


def test_anthropics_format(client: httpx.Client) -> None:
    given = {"max_tokens": 60, "messages": HI, "temperature": 0.5}
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert json.loads(post(client, "/v1/messages", output_config=form, **given)["content"][0]["text"])["age"] in (12, 7)
    assert post(client, "/v1/messages", output_config={}, **given)["content"]
    for wrong in ({"format": "json"}, {"effort": "low"}, {"format": {"type": "json_schema", "schema": 1}}):
        refused = client.post("/v1/messages", json={"model": "tiny", **given, "output_config": wrong})
        assert (refused.status_code, "output_config" in refused.text) == (400, True), refused.text


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs", ["not"]),
        ({"structured_outputs": {"grammar": "start: a"}}, "structured_outputs", ["1(8)"]),
        ({"structured_outputs": {"xml": 1}}, "structured_outputs", ["xml"]),
        ({"structured_outputs": "json"}, "structured_outputs", ["object"]),
        ({"response_format": {"type": "xml"}}, "response_format", ["xml", "json_schema"]),
        ({"response_format": {"type": "json_schema"}}, "response_format", ["json_schema", "object"]),
        ({"response_format": {"type": "json_schema", "json_schema": {"shema": {}}}}, "response_format", ["shema"]),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "response_format",
            ["one"],
        ),
        ({"guided_json": SCHEMA}, "guided_json", ["structured_outputs"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_a_400_that_says_where(
    client: httpx.Client, fields: dict[str, Any], param: str, words: list[str], stream: bool
) -> None:
    answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "Hi", "stream": stream, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert all(word in error["message"] for word in words), error
