"""Responses as they are made: items, events and errors, whole and streamed, by engines that say a given text."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from octavo.sampling_params import SamplingParams
from tests.server.scripted_engine import Answer, ScriptedEngine, app_of, call, post
from tests.server.speaking_engine import SpeakingEngine
from tests.server.test_tools import CALL, CITY, HARMONY, HERMES

WEATHER = {"type": "function", "name": "weather", "description": "Tells it.", "parameters": CITY, "strict": False}
CLOCK = {"type": "function", "name": "clock"}
LOGPROBS = "message.output_text.logprobs"
ROME = '{"city": "Rome"}'


def ask(engine: ScriptedEngine, server: dict[str, Any] | None = None, **fields: Any) -> Answer:
    return post(app_of(engine, **server or {}), "/v1/responses", {"input": "Hi", "tools": [WEATHER, CLOCK], **fields})


def made(says: str, template: str = HERMES, **fields: Any) -> dict[str, Any]:
    """A whole response; the streamed one is compared with it, and its events with their items."""
    reason = fields.pop("reason", "stop")
    whole = ask(SpeakingEngine(says, template, reason), **fields)
    assert whole.status == 200, whole.json()
    events = ask(SpeakingEngine(says, template, reason), stream=True, **fields).events()
    assert without_ids(joined(events)) == without_ids(whole.json())
    response: dict[str, Any] = whole.json()
    return response


def joined(events: list[dict[str, Any]]) -> dict[str, Any]:
    """A stream's last response, after its events were checked one by one."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert {event["type"] for event in events[:2] if event["response"]["output"] == []} != set()
    items: dict[int, dict[str, Any]] = {}
    open_at: int | None = None
    text, rows = "", []
    for event in events[2:-1]:
        kind, at = event["type"], event["output_index"]
        if kind == "response.output_item.added":
            assert open_at is None
            open_at, text, rows = at, "", []
            assert event["item"]["status"] == "in_progress"
            continue
        assert at == open_at
        if kind.endswith(".delta"):
            assert event["delta"]
            text += event["delta"]
            rows += event.get("logprobs", [])
        elif kind.endswith((".part.added", "_part.added")):
            assert event["part"]["text"] == ""
        elif kind == "response.output_item.done":
            items[at], open_at = event["item"], None
        else:
            done = event.get("part", event)
            assert text == done.get("text", done.get("arguments"))
            assert done.get("logprobs", []) == rows
    response: dict[str, Any] = events[-1]["response"]
    assert events[-1]["type"] == f"response.{response['status']}"
    assert [items[at] for at in range(len(response["output"]))] == response["output"]
    return response


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    """Times and ids differ from one call to the next."""
    output = [{key: one[key] for key in one if key not in ("id", "call_id")} for one in response["output"]]
    return {**response, "id": "", "created_at": 0, "completed_at": 0, "output": output}


def texts(response: dict[str, Any]) -> list[tuple[str, str]]:
    """Each item's type and text."""
    found = []
    for item in response["output"]:
        parts = item["content"] + item.get("summary", []) if "content" in item else [{"text": item["arguments"]}]
        found.append((item["type"], "".join(part["text"] for part in parts)))
    return found


def test_thoughts_text_and_calls_are_items() -> None:
    response = made(
        f"<think>\nHm.\n</think>\n\nLet me look.\n{CALL}\n{CALL}", metadata={"a": "b"}, max_output_tokens=99
    )
    wanted = [("reasoning", "\nHm.\n"), ("message", "Let me look."), ("function_call", ROME), ("function_call", ROME)]
    assert texts(response) == wanted
    assert {item["status"] for item in response["output"]} == {"completed"}
    assert [item["id"].partition("_")[0] for item in response["output"]] == ["rs", "msg", "fc", "fc"]
    assert len({item["call_id"] for item in response["output"][2:]}) == 2
    assert (response["object"], response["status"], response["model"]) == ("response", "completed", "tiny")
    assert (response["metadata"], response["max_output_tokens"], response["store"]) == ({"a": "b"}, 99, True)
    assert (response["tools"], response["tool_choice"]) == ([WEATHER, CLOCK], "auto")
    usage = response["usage"]
    assert 1 <= usage["output_tokens_details"]["reasoning_tokens"] <= 5
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("says", "template", "wanted"),
    [
        ("Yes.", HERMES, [("message", "Yes.")]),
        ("Yes.", "{{ messages[0].content }}", [("message", "Yes.")]),
        (f"A {CALL} B", HERMES, [("message", "A"), ("function_call", ROME), ("message", "B")]),
        (f"{CALL[:-20]} B", HERMES, [("message", f"{CALL[:-20]} B")]),
        ("<think>Hm.</think>", HERMES, [("reasoning", "Hm."), ("message", "")]),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.clock "
            "<|constrain|>json<|message|>{}<|call|>",
            HARMONY,
            [("reasoning", "Hm."), ("function_call", "{}")],
        ),
    ],
)
def test_each_kind_of_answer(says: str, template: str, wanted: list[tuple[str, str]]) -> None:
    fields = {} if template != "{{ messages[0].content }}" else {"tools": None}
    assert texts(made(says, template, **fields)) == wanted


def test_a_cut_answer_is_incomplete() -> None:
    for says, kinds in (("<think>Hm", ["reasoning"]), ("A and", ["message"]), (CALL[:-20], ["message"])):
        response = made(says, reason="length")
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert [one["type"] for one in response["output"]] == kinds
        assert response["output"][-1]["status"] == "incomplete"


def test_thoughts_are_told_as_their_summary_if_one_is_asked_for() -> None:
    response = made("<think>Hm.</think>Yes.", reasoning={"summary": "auto"})
    assert response["output"][0]["summary"] == [{"type": "summary_text", "text": "Hm."}]
    assert response["output"][0]["content"] == []
    events = ask(SpeakingEngine("<think>Hm.</think>", HERMES), stream=True, reasoning={"summary": "auto"}).events()
    assert "response.reasoning_summary_text.delta" in {event["type"] for event in events}
    asked = made("Hm.</think>Yes.", reasoning={"effort": "high"})
    assert (texts(asked)[0], asked["reasoning"]["effort"]) == (("reasoning", "Hm."), "high")


def test_log_probabilities_are_those_of_the_text() -> None:
    asked = {"include": [LOGPROBS], "top_logprobs": 2, "tools": None}
    whole = ask(ScriptedEngine(), **asked).json()
    rows = whole["output"][0]["content"][0]["logprobs"]
    assert "".join(row["token"] for row in rows) == whole["output"][0]["content"][0]["text"]
    assert [len(row["top_logprobs"]) for row in rows] == [2] * 4
    assert without_ids(joined(ask(ScriptedEngine(), stream=True, **asked).events())) == without_ids(whole)


class RatedEngine(SpeakingEngine):
    """With log-probabilities of what it says."""

    def _piece(self, request: Any, ids: list[int], reason: Any) -> Any:
        output = super()._piece(request, ids, reason)
        if request.sampling_params.logprobs is not None:
            output.outputs[0].logprobs = [self._row(one, 0) for one in ids]
        return output


def test_tokens_of_thoughts_and_calls_are_left_out_of_them() -> None:
    says = f"<think>Hm.</think>Let me look. {CALL}"
    for fields in ({}, {"stream": True}):
        answer = ask(RatedEngine(says, HERMES), include=[LOGPROBS], **fields)
        response = answer.json() if not fields else answer.events()[-1]["response"]
        part = response["output"][1]["content"][0]
        assert part["text"] == "Let me look."
        assert len(part["logprobs"]) == 4


def test_fields_reach_the_engine_and_the_template() -> None:
    engine = SpeakingEngine("Fine.", HERMES)
    schema = {"type": "json_schema", "name": "a", "schema": CITY, "strict": True}
    fields: dict[str, Any] = {"temperature": 0.5, "top_p": 0.7, "top_k": 3, "seed": 7, "max_output_tokens": 5}
    assert ask(engine, instructions="Be brief.", text={"format": schema}, cache_salt="x", **fields).status == 200
    params = engine.requests[-1].sampling_params
    assert (params.temperature, params.top_p, params.top_k, params.seed, params.max_tokens) == (0.5, 0.7, 3, 7, 5)
    assert params.structured_outputs is not None
    assert '%json {"type": "object", "properties": {"city"' in str(params.structured_outputs.grammar), "or calls"
    assert ask(engine, text={"format": schema}, tools=None).status == 200
    form = engine.requests[-1].sampling_params.structured_outputs
    assert form is not None
    assert form.json == CITY
    assert engine.salts == ["x", None]
    assert ask(engine, instructions="Be brief.").status == 200
    assert engine.prompt == "weather;clock;system:  Be brief.user:  Hiassistant:"
    ask(engine, tool_choice={"type": "function", "name": "clock"})
    grammar = engine.requests[-1].sampling_params.structured_outputs
    assert grammar is not None
    assert "clock" in str(grammar.grammar)
    assert "weather" not in str(grammar.grammar)
    ask(
        engine,
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]},
    )
    grammar = engine.requests[-1].sampling_params.structured_outputs
    assert grammar is not None
    assert ("clock" in str(grammar.grammar), "weather" in str(grammar.grammar)) == (True, False)
    assert ask(engine, text={"format": {"type": "json_object"}}).json()["text"]["format"] == {"type": "json_object"}
    assert ask(ScriptedEngine(), tools=None).json()["temperature"] == SamplingParams(temperature=0.5).temperature


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": []}, r"input is \[\], allowed is a text, or at least one item"),
        ({"input": [{"type": "web_search_call"}]}, r"input\[0\].type is 'web_search_call', allowed are message, "),
        ({"input": [{"role": "robot", "content": ""}]}, r"input\[0\].role is 'robot'"),
        ({"input": [{"role": "user"}]}, r"input\[0\].content is None, allowed is a text, or a list of text parts"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, r"content\[0\] is of type 'input_image'"),
        ({"input": [{"role": "user", "content": "", "mood": 1}]}, r"input\[0\] has the key 'mood'"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": ""}]}, "call_id is 'x', allowed is the"),
        ({"input": [{"type": "function_call", "name": "f", "call_id": "1"}]}, r"arguments is None, allowed is a text"),
        ({"input": "x " * 5000}, r"^input has .*tokens.* must fit; shorten it, or set truncation to auto, which drops"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\].type is 'web_search', allowed is function"),
        ({"tools": [{"type": "function", "name": "a b"}]}, r"tools\[0\].name is 'a b'"),
        ({"tools": [{**CLOCK, "defer_loading": True}]}, r"tools\[0\] has the key 'defer_loading'"),
        ({"tool_choice": {"type": "custom"}}, r"tool_choice is {'type': 'custom'}"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools.mode is None, allowed are auto"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [5]}},
            "tool_choice is 5, allowed are none",
        ),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice names 'x'"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type is 'xml'"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema is None"),
        ({"text": {"verbosity": "low"}}, "text.verbosity is 'low'"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort is 'huge'"),
        ({"reasoning": {"summary": "concise"}}, "reasoning.summary is 'concise'"),
        ({"include": ["x"]}, r"include\[0\] is 'x'"),
        ({"top_logprobs": 3}, "top_logprobs is 3 and include has not"),
        ({"top_logprobs": 21, "include": [LOGPROBS]}, "top_logprobs is 21, allowed is 0 to 20"),
        ({"truncation": "middle"}, "truncation is 'middle', allowed are auto and disabled"),
        ({"tools": [{"type": "custom", "name": "f"}]}, r"tools\[0\].type is 'custom', .* one parameter that is a text"),
        ({"input": "x " * 5000, "truncation": "auto"}, r"^input has .*tokens.* must fit; shorten it$"),
        ({"max_output_tokens": 0}, "max_output_tokens is 0"),
        ({"max_tool_calls": -1}, "max_tool_calls is -1"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata has 17 keys"),
        ({"metadata": {"a": "x" * 513}}, "metadata has a key 'a'"),
        ({"stream_options": {}}, "stream_options is set and stream is not"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "include_obfuscation is true"),
        ({"background": True, "store": False}, "background is true and store is false"),
        ({"conversation": "c"}, "conversation is 'c', which this engine does not support"),
        ({"n": 2}, "there is no parameter 'n'"),
        ({"previous_response_id": "resp_x"}, "previous_response_id is 'resp_x', which is not kept: it was made with"),
        ({"temperature": -1}, "temperature is -1"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    answer = ask(SpeakingEngine("Fine.", HERMES), **fields)
    assert answer.status == 400, answer.body
    assert re.search(words, answer.error["message"])
    assert answer.error["param"] in fields


def test_what_asks_for_nothing_is_taken() -> None:
    nothing = {
        "conversation": None,
        "service_tier": "auto",
        "user": "me",
        "truncation": "disabled",
        "prompt_cache_key": "k",
    }
    fields = {**nothing, "text": {"verbosity": "medium"}, "include": ["reasoning.encrypted_content"], "tools": []}
    item = {"role": "user", "content": [{"type": "input_text", "text": "Hi", "prompt": None}], "phase": None, "x": None}
    assert ask(SpeakingEngine("Fine.", HERMES), input=[item], **fields).status == 200


def test_a_conversation_that_is_too_long_loses_its_oldest_items() -> None:
    engine = SpeakingEngine("Fine.", HERMES)
    says = [
        {"role": role, "content": f"{role} {turn} " + "x" * 900} for turn in range(9) for role in ("user", "assistant")
    ]
    call = {"type": "function_call", "call_id": "1", "name": "clock", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "1", "output": "x" * 900}
    items = [{"role": "system", "content": "Be brief."}, *says, {"role": "user", "content": "What now?"}, call, result]
    assert ask(engine, input=items).status == 400
    whole = ask(engine, input=items, truncation="auto")
    assert (whole.status, whole.json()["truncation"]) == (200, "auto")
    kept = re.findall(r"(?:user|assistant) \d", engine.prompt)
    assert 4 < len(kept) < 18
    assert kept == [one["content"][:-901] for one in says[-len(kept) :]], "whole turns, the newest"
    assert "Be brief." in engine.prompt
    assert len(engine.requests[-1].prompt_token_ids) > 1024
    short = ask(engine, input=items, truncation="auto", max_output_tokens=1200)
    assert short.status == 200
    assert len(engine.requests[-1].prompt_token_ids) <= 2048 - 1200
    within = [items[0], items[-3], *[dict(one, call_id=str(turn)) for turn in range(9) for one in (call, result)]]
    assert ask(engine, input=within, truncation="auto").status == 200
    assert "What now?" in engine.prompt


def test_an_engine_that_fails() -> None:
    """Before the first token it is the call's error, and later the stream's."""
    early = ask(ScriptedEngine(fault=RuntimeError("x")), stream=True, tools=None)
    assert (early.status, early.error["code"]) == (500, "internal_error")
    late = ask(ScriptedEngine(fault=RuntimeError("x"), fault_at=2), stream=True, tools=None).events()
    assert late[-1]["type"] == "response.failed"
    assert late[-1]["response"]["error"] == {
        "code": "server_error",
        "message": late[-1]["response"]["error"]["message"],
    }
    assert late[-1]["response"]["output"][0]["content"][0]["text"] == " one two"
    ended = ask(SpeakingEngine("Yes", HERMES, "abort"))
    assert (ended.status, ended.error["code"]) == (503, "aborted")


def test_leaving_a_stream_ends_the_engines_work() -> None:
    engine = ScriptedEngine(pause=5.0)
    app, body = app_of(engine), json.dumps({"input": "Hi", "stream": True}).encode()
    answer = asyncio.run(call(app, "POST", "/v1/responses", body, {"content-type": "application/json"}, leave_after=1))
    assert b"response.created" in answer.body
    assert engine.live == 0


def test_ids_are_new_whatever_the_call_is_called() -> None:
    """Two clients behind one proxy may send one id, and must not find each other's responses."""
    app = app_of(SpeakingEngine("Fine.", HERMES), enable_request_id_headers=True)
    answers = [post(app, "/v1/responses", {"input": "Hi"}, **{"x-request-id": "page"}) for _ in range(2)]
    assert [one.headers["x-request-id"] for one in answers] == ["page", "page"]
    assert answers[0].json()["id"] != answers[1].json()["id"]
