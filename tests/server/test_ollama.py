"""Ollama's routes: with Ollama's own client, the exact lines, and which fields are refused by name."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from octavo.errors import EngineBusyError, EngineDeadError
from tests.server.live_server import serve
from tests.server.scripted_embedder import ScriptedEmbedder
from tests.server.scripted_engine import Answer, ScriptedEngine, app_of, get, post, without_template
from tests.server.speaking_engine import TOOL_TEMPLATE, SpeakingEngine

HI = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "tiny", "messages": HI}
TEXT = {"model": "tiny", "prompt": "Hi"}
WHOLE = {"stream": False}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {"city": {}}}}}
SAID = " one two three caf\u00e9"


@pytest.fixture(scope="module")
def client() -> Iterator[ollama.Client]:
    with serve(app_of()) as address:
        yield ollama.Client(host=address)


def test_its_own_client_embeds() -> None:
    texts, long = ["one two", "three"], "two " * 500
    with serve(app_of(ScriptedEmbedder())) as address:
        client = ollama.Client(host=address)
        found = client.embed("tiny:latest", texts, dimensions=2, options={"num_ctx": 9})
        plain = post(app_of(ScriptedEmbedder()), "/v1/embeddings", {"input": texts, "dimensions": 2}).json()
        assert [list(one) for one in found.embeddings] == [one["embedding"] for one in plain["data"]]
        assert (found.model, found.prompt_eval_count) == ("tiny:latest", plain["usage"]["prompt_tokens"])
        (one,) = client.embed("tiny", "one two").embeddings
        assert list(client.embeddings("tiny", "one two").embedding) == list(one)
        assert client.embed("tiny", long).prompt_eval_count == 128
        assert client.show("tiny").capabilities == ["embedding"]
        for wrong, message in (
            (lambda: client.embed("tiny", long, truncate=False), "tokens, allowed are 128"),
            (lambda: client.embed("tiny", []), "input is missing or empty"),
            (lambda: client.embeddings("tiny", ""), "prompt is missing or empty"),
            (lambda: client.embed("other", "a"), "model 'other' not found"),
        ):
            with pytest.raises(ollama.ResponseError, match=message):
                wrong()


def lines(answer: Answer) -> list[Any]:
    return [json.loads(line) for line in answer.body.decode().splitlines()]


def test_its_own_client_chats(client: ollama.Client) -> None:
    whole = client.chat("tiny", HI, options={"num_predict": 3, "temperature": 0})
    assert whole.message.role == "assistant"
    assert whole.message.content == " one two three"
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 3)
    parts = list(client.chat("tiny:latest", HI, stream=True))
    assert "".join(part.message.content or "" for part in parts) == SAID
    assert [part.done for part in parts] == [False] * 4 + [True]


def test_its_own_client_generates_and_looks_around(client: ollama.Client) -> None:
    assert client.generate("tiny", "Hi").response == SAID
    assert "".join(part.response for part in client.generate("tiny", "Hi", stream=True)) == SAID
    assert [model.model for model in client.list().models] == ["tiny:latest"]
    assert [model.model for model in client.ps().models] == ["tiny:latest"]
    shown = client.show("tiny")
    assert "add_generation_prompt" in (shown.template or "")
    assert (shown.modelinfo or {})["octavo.context_length"] == 128
    assert shown.capabilities == ["completion", "tools"]
    assert shown.parameters == "temperature 0.5"
    with pytest.raises(ollama.ResponseError, match=r"model 'other' not found, served is 'tiny'") as refused:
        client.chat("other", HI)
    assert refused.value.status_code == 404


def test_lines_are_as_ollama_writes_them() -> None:
    answer = post(app_of(), "/api/chat", CHAT)
    assert answer.headers["content-type"] == "application/x-ndjson"
    first, *_, last = lines(answer)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", first.pop("created_at"))
    assert first == {"model": "tiny", "message": {"role": "assistant", "content": " one"}, "done": False}
    del last["created_at"]
    times = {"total_duration": 2 * 10**9, "load_duration": 25 * 10**7, "prompt_eval_duration": 25 * 10**7}
    assert last == {
        "model": "tiny",
        "message": {"role": "assistant", "content": ""},
        **{"done": True, "done_reason": "length"},
        **times,
        "eval_duration": 15 * 10**8,
        "prompt_eval_count": last["prompt_eval_count"],
        "eval_count": 4,
    }
    whole = post(app_of(), "/api/generate", TEXT | WHOLE)
    assert whole.headers["content-type"] == "application/json"
    assert whole.json()["response"] == SAID
    assert whole.json()["eval_count"] == 4


def test_options_reach_the_engine_over_ollamas_defaults() -> None:
    engine = ScriptedEngine()
    options = {"num_predict": 7.0, "top_k": 9, "min_p": 0.1, "seed": 4.0, "stop": ["END"], "repeat_penalty": 1.2}
    idle = {"num_ctx": 4096, "num_thread": 8, "repeat_last_n": 64, "mirostat": 0, "typical_p": 1.0}
    assert post(app_of(engine), "/api/chat", CHAT | {"options": {**options, **idle}, "keep_alive": "5m"}).status == 200
    params = engine.requests[0].sampling_params
    assert (params.max_tokens, params.top_k, params.min_p, params.seed, params.stop) == (7, 9, 0.1, 4, ("END",))
    assert (params.repetition_penalty, params.top_p) == (1.2, 0.9)
    assert params.temperature == 0.5, "what the model's makers recommend goes before Ollama's 0.8"
    post(app_of(engine), "/api/chat", CHAT | {"options": {"repeat_penalty": 1.2, "repeat_last_n": 0}})
    assert engine.requests[1].sampling_params.repetition_penalty == 1.0
    for most in (-1, -2, 4096, None):
        post(app_of(engine), "/api/chat", CHAT | {"options": {"num_predict": most}})
        request = engine.requests[-1]
        assert request.max_output_tokens == 128 - len(request.prompt_token_ids)


def test_a_prompt_is_what_a_user_says_unless_it_is_raw() -> None:
    engine = ScriptedEngine()
    app = app_of(engine)
    post(app, "/v1/chat/completions", {"messages": [{"role": "system", "content": "Be brief."}, *HI]})
    post(app, "/api/generate", TEXT | {"system": "Be brief."})
    post(app, "/api/generate", TEXT | {"raw": True})
    post(app, "/v1/completions", TEXT)
    asked = [request.prompt_token_ids for request in engine.requests]
    assert asked[0] == asked[1]
    assert asked[2] == asked[3] != asked[1]


def test_a_begun_answer_is_continued() -> None:
    engine = ScriptedEngine()
    begun = [*HI, {"role": "assistant", "content": "Zero"}]
    post(app_of(engine), "/api/chat", CHAT | {"messages": begun})
    body = {"messages": begun, "continue_final_message": True, "add_generation_prompt": False}
    post(app_of(engine), "/v1/chat/completions", body)
    assert engine.requests[0].prompt_token_ids == engine.requests[1].prompt_token_ids


def test_a_model_without_a_template_generates_and_says_how_to_ask() -> None:
    engine = without_template(ScriptedEngine())
    post(app_of(engine), "/v1/completions", TEXT)
    assert post(app_of(engine), "/api/generate", TEXT | WHOLE).json()["response"] == SAID
    assert engine.requests[0].prompt_token_ids == engine.requests[1].prompt_token_ids
    refused = post(app_of(engine), "/api/chat", CHAT)
    assert refused.status == 400
    assert "Ollama's clients: /api/generate" in refused.json()["error"]
    assert "has no place" in post(app_of(engine), "/api/generate", TEXT | {"system": "x"}).json()["error"]


def test_its_own_client_calls_tools_and_thinks() -> None:
    says = 'Hm.</think>Look: <tool_call>\n{"name": "time", "arguments": {"city": "Rome"}}\n</tool_call>'
    engine = SpeakingEngine(says, "{# <tool_call> </think> #}" + TOOL_TEMPLATE)
    with serve(app_of(engine)) as address:
        client = ollama.Client(host=address)
        assert client.show("tiny").capabilities == ["completion", "tools", "thinking"]
        whole = client.chat("tiny", HI, tools=[TIME], think=True)
        parts = list(client.chat("tiny", HI, tools=[TIME], think=True, stream=True))
        generated = client.generate("tiny", "Hi", think=True)
    for messages in ([whole.message], [part.message for part in parts]):
        assert "".join(one.thinking or "" for one in messages) == "Hm."
        assert "".join(one.content or "" for one in messages) == "Look:"
        (call,) = [call for one in messages for call in one.tool_calls or ()]
        assert (call.function.name, call.function.arguments) == ("time", {"city": "Rome"})
    assert (whole.done_reason, parts[-1].done_reason) == ("stop", "stop")
    assert (generated.thinking, generated.response[:12]) == ("Hm.", "Look: <tool_")


def test_thoughts_calls_and_results_go_into_the_template() -> None:
    engine = SpeakingEngine("Fine.", "{# <tool_call> </think> #}" + TOOL_TEMPLATE)
    call = {"function": {"name": "time", "arguments": {"city": "Rome"}}}
    turns = [*HI, {"role": "assistant", "thinking": "Hm.", "content": "", "tool_calls": [call, call]}]
    turns += [{"role": "tool", "tool_name": "time", "content": "noon"}, {"role": "tool", "content": "night"}]
    for think, has_switch in ((None, False), (False, False), (True, True), ("low", True)):
        assert (
            post(app_of(engine), "/api/chat", CHAT | {"messages": turns, "tools": [TIME], "think": think}).status == 200
        )
        assert engine.prompt.endswith("<think>\n") == has_switch
    openais = [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "reasoning": "Hm.",
            "content": "",
            "tool_calls": [{**call, "type": "function", "id": "a"}] * 2,
        },
        {"role": "tool", "tool_call_id": "a", "content": "noon"},
        {"role": "tool", "tool_call_id": "a", "content": "night"},
    ]
    post(app_of(engine), "/api/chat", CHAT | {"messages": turns, "tools": [TIME]})
    assert post(app_of(engine), "/v1/chat/completions", {"messages": openais, "tools": [TIME]}).status == 200
    assert engine.requests[-1].prompt_token_ids == engine.requests[-2].prompt_token_ids


@pytest.mark.parametrize("stream", [True, False])
def test_asking_for_the_model_alone_finds_it_loaded(stream: bool) -> None:
    for path, body in (("/api/chat", {"model": "tiny", "keep_alive": 0}), ("/api/generate", {"model": "tiny"})):
        answer = post(app_of(), path, body | {"stream": stream})
        assert (answer.status, answer.json()["done"], answer.json()["done_reason"]) == (200, True, "load")


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("chat", {"tools": [{"type": "function"}]}, r"tools\[0\] is .*, allowed is {'type': 'function', 'function'"),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, r"tool_calls\[0\] is {}, allowed is"),
        ("chat", {"think": "much"}, "think is 'much', allowed are true, false, low, medium, high"),
        ("generate", {"think": True, "raw": True}, "think is True, but raw is true"),
        ("chat", {"format": "xml"}, "format is 'xml', allowed are 'json' and a JSON schema"),
        ("chat", {"format": {"uniqueItems": True}}, "uniqueItems"),
        ("chat", {"think": True}, "think is True, but this model does not support thinking: leave it out"),
        (
            "chat",
            {"messages": [{"role": "user", "content": "Hi", "images": ["aGk="]}]},
            r"messages\[0\].images is given",
        ),
        ("chat", {"messages": [{"role": "user"}]}, r"messages\[0\].content is missing"),
        ("generate", {"images": ["aGk="]}, "images is"),
        ("generate", {"suffix": "end"}, "suffix is 'end'"),
        ("generate", {"template": "{{ .Prompt }}"}, "template is"),
        ("generate", {"context": [1, 2]}, "context is"),
        ("generate", {"promt": "Hi"}, "did you mean 'prompt'"),
        ("chat", {"options": {"mirostat": 2}}, "options.mirostat is 2, .* allowed is leaving it out or 0"),
        ("chat", {"options": {"temprature": 1}}, "temprature"),
        ("chat", {"options": {"temperature": -1}}, "options.temperature is -1"),
        ("chat", {"options": {"repeat_penalty": -1}}, "options.repeat_penalty is -1"),
        ("chat", {"options": {"num_predict": 0}}, "options.num_predict is 0"),
        ("chat", {"options": {"top_k": "many"}}, "options.top_k is 'many', allowed is int"),
        ("chat", {"messages": [{"role": "user", "content": "word " * 200}]}, "allowed are 127: .* shorten it$"),
    ],
)
def test_what_is_not_here_is_refused_by_name(path: str, fields: dict[str, object], message: str) -> None:
    answer = post(app_of(), f"/api/{path}", (CHAT if path == "chat" else TEXT) | fields)
    assert answer.status == 400
    assert set(answer.json()) == {"error"}
    assert re.search(message, answer.json()["error"]), answer.json()


def test_faults_are_told_as_ollama_tells_them() -> None:
    busy = post(app_of(ScriptedEngine(fault=EngineBusyError("too many wait", 2))), "/api/chat", CHAT)
    assert (busy.status, busy.json()) == (503, {"error": "too many wait"})
    app = app_of(ScriptedEngine(fault=EngineDeadError("the engine stopped"), fault_at=2))
    *_, last = lines(post(app, "/api/generate", TEXT))
    assert last["error"].startswith("the engine stopped")
    assert get(app_of(), "/api/nowhere").json()["error"].startswith("there is no '/api/nowhere' here")


def test_knocking_at_the_door() -> None:
    with serve(app_of()) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
        connection.request("HEAD", "/")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
        connection.close()
    assert set(get(app_of(), "/api/version").json()) == {"version"}


def test_a_body_needs_no_type_unless_a_page_sends_it() -> None:
    """curl -d sends the content type of a form, and Ollama's users set no header."""
    form = {"content-type": "application/x-www-form-urlencoded"}
    body = {"model": "tiny", "prompt": "Hi", "stream": False}
    assert post(app_of(), "/api/generate", body, **form).status == 200
    assert post(app_of(), "/api/show", {"model": "tiny"}, **form).status == 200
    assert post(app_of(), "/api/generate", body, origin="https://elsewhere.example", **form).status == 415
    assert post(app_of(), "/v1/completions", {"prompt": "Hi"}, **form).status == 415
