"""Tools and reasoning in chats: fields, answers whole and streamed, and calls that the grammar forces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import AsyncLLM
from octavo.errors import ConfigError, InvalidRequestError
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings
from octavo.text.tools_in_text import with_tools
from tests.conftest import TinyFolder
from tests.server.live_server import serve
from tests.server.scripted_engine import Answer, app_of, post
from tests.server.speaking_engine import TOOL_TEMPLATE, SpeakingEngine
from tests.structured.spelling_model import spelling_model

CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
HERMES = "{# <tool_call> </think> #}" + TOOL_TEMPLATE
HARMONY = "{# <|channel|> analysis functions #}" + TOOL_TEMPLATE
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
HI = [{"role": "user", "content": "Hi"}]


def chat(engine: SpeakingEngine, server: dict[str, Any] | None = None, **fields: Any) -> Answer:
    return post(app_of(engine, **server or {}), "/v1/chat/completions", {"messages": HI, "tools": TOOLS, **fields})


def said(says: str, template: str = HERMES, **fields: Any) -> dict[str, Any]:
    """The first choice of a whole answer; the streamed one is compared with it."""
    reason = fields.pop("reason", "stop")
    answer = chat(SpeakingEngine(says, template, reason), **fields)
    assert answer.status == 200, answer.json()
    choice: dict[str, Any] = answer.json()["choices"][0]
    streamed = joined(chat(SpeakingEngine(says, template, reason), stream=True, **fields).events())
    whole = choice["message"]
    assert streamed["content"] == (whole["content"] or "")
    assert streamed["reasoning"] == (whole["reasoning"] or "") == whole.get("reasoning_content", "")
    assert streamed["finish_reason"] == choice["finish_reason"]
    assert [one["function"] for one in streamed["calls"]] == [one["function"] for one in whole.get("tool_calls", [])]
    return choice


def joined(events: list[Any]) -> dict[str, Any]:
    """A stream's deltas as one, as clients join them."""
    made: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish_reason": None}
    for event in events[:-1]:
        (choice,) = event["choices"]
        delta = choice["delta"]
        made["content"] += delta.get("content") or ""
        made["reasoning"] += delta.get("reasoning") or ""
        assert delta.get("reasoning") == delta.get("reasoning_content")
        made["finish_reason"] = choice["finish_reason"] or made["finish_reason"]
        for part in delta.get("tool_calls", []):
            if part["index"] == len(made["calls"]):
                assert part["type"] == "function"
                made["calls"].append({"id": part["id"], "function": part["function"]})
            else:
                made["calls"][part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return made


def test_a_call_is_taken_out_of_the_text() -> None:
    choice = said(f"Let me look.\n{CALL}\n{CALL}")
    message = choice["message"]
    assert (choice["finish_reason"], message["content"]) == ("tool_calls", "Let me look.")
    for one in message["tool_calls"]:
        assert one["id"].startswith("chatcmpl-tool-")
        assert one["type"] == "function"
        assert one["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert len({one["id"] for one in message["tool_calls"]}) == 2
    assert said(CALL)["message"]["content"] is None


def test_one_call_where_they_are_not_parallel() -> None:
    assert len(said(CALL + CALL, parallel_tool_calls=False)["message"]["tool_calls"]) == 1


def allowed(mode: object, *names: object) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}}


def test_only_allowed_tools_are_called_and_all_are_shown() -> None:
    engine = SpeakingEngine(CALL, HERMES)
    called = chat(engine, **allowed("auto", "weather")).json()["choices"][0]["message"]
    assert [one["function"]["name"] for one in called["tool_calls"]] == ["weather"]
    chat(engine)
    whole = engine.prompt
    assert chat(engine, **allowed("auto", "clock")).json()["choices"][0]["message"]["content"] == CALL
    assert engine.prompt == whole
    chat(engine, **allowed("required", "clock"))
    form = engine.requests[-1].sampling_params.structured_outputs
    assert form is not None
    assert "clock" in str(form.grammar)
    assert "weather" not in str(form.grammar)


def test_without_calls_an_answer_is_content() -> None:
    for fields in ({"tool_choice": "none"}, {"tools": []}, {"tools": None}, {"tools": [CLOCK]}):
        choice = said(CALL, **fields)
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
        assert "tool_calls" not in choice["message"]
    choice = chat(SpeakingEngine(CALL[:-20], HERMES, "length")).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL[:-20], "length")


def test_a_cut_stream_has_the_beginning_of_its_call() -> None:
    """What was sent cannot be taken back; the reason says that it is not whole."""
    answer = joined(chat(SpeakingEngine(CALL[:-18], HERMES, "length"), stream=True).events())
    assert answer["finish_reason"] == "length"
    assert [one["function"] for one in answer["calls"]] == [{"name": "weather", "arguments": '{"city": "Ro'}]
    assert answer["content"] == CALL[:-18]


def test_thoughts_are_taken_out_of_the_text() -> None:
    says = f"<think>\nHm.\n</think>\n\nYes. {CALL}"
    message = said(says)["message"]
    assert (message["reasoning"], message["content"], len(message["tool_calls"])) == ("\nHm.\n", "Yes.", 1)
    message = said(says, tools=None)["message"]
    assert (message["reasoning_content"], message["content"]) == ("\nHm.\n", f"Yes. {CALL}")
    hidden = chat(SpeakingEngine(says, HERMES), include_reasoning=False).json()["choices"][0]["message"]
    assert (hidden["reasoning"], hidden["content"]) == (None, "Yes.")
    assert said("Hm.</think>Yes.", chat_template_kwargs={"enable_thinking": True})["message"]["reasoning"] == "Hm."
    assert said("Hm.</think>Yes.")["message"]["content"] == "Hm.</think>Yes."


@pytest.mark.parametrize(
    ("before", "after", "template"),
    [
        ("<think>", f"</think>\n\nYes. {CALL}", HERMES),
        ("<think>", "", HERMES),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>Yes.", HARMONY),
    ],
)
def test_tokens_of_thoughts_are_counted_without_their_marks(before: str, after: str, template: str) -> None:
    thoughts = "Hm, <b> is it so? Well. "
    engine = SpeakingEngine(before + thoughts + after, template)
    assert engine.tokenizer is not None
    num = len(engine.tokenizer.encode(thoughts, add_special_tokens=False))
    usage = chat(engine).json()["usage"]
    counted = usage["completion_tokens_details"]["reasoning_tokens"]
    assert abs(counted - num) <= 1, "a token may reach over a mark"
    for interval in (1, 3):
        asked = {"stream": True, "stream_options": {"include_usage": True}, "stream_interval": interval}
        assert chat(engine, **asked).events()[-2]["usage"] == usage
    plain = chat(SpeakingEngine("Yes.", "{{ messages[0].content }}"), tools=None).json()
    assert "completion_tokens_details" not in plain["usage"]


def test_effort_reaches_the_templates_switches() -> None:
    engine = SpeakingEngine("Hm.</think>Yes.", HERMES)
    assert chat(engine, reasoning_effort="high").json()["choices"][0]["message"]["reasoning"] == "Hm."
    chat(engine, reasoning_effort="none")
    assert engine.prompt.endswith("assistant:")
    levels = SpeakingEngine("Yes.", "{{ reasoning_effort }}:{{ messages[0].content }}")
    assert chat(levels, reasoning_effort="low", tools=None).status == 200
    assert levels.prompt == "low:Hi"
    plain = SpeakingEngine("Yes.", "{{ messages[0].content }}")
    assert chat(plain, reasoning_effort="none", tools=None).status == 200
    refused = chat(plain, reasoning_effort="low", tools=None)
    assert (refused.status, refused.error["param"]) == (400, "reasoning_effort")


def test_tools_calls_results_and_thoughts_reach_the_template() -> None:
    engine = SpeakingEngine("Fine.", HERMES)
    called = {"role": "assistant", "reasoning": "Look!", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    ]}  # fmt: skip
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "Sun"}]}
    assert chat(engine, messages=[*HI, called, result]).status == 200
    assert engine.prompt.startswith("weather;clock;user:")
    assert "assistant: Look! " in engine.prompt
    assert "Look! Rometool:" in engine.prompt
    assert engine.prompt.endswith("Sunassistant:")


def test_a_template_without_tools_is_told_them_in_words() -> None:
    engine = SpeakingEngine(CALL, "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    called = {"role": "assistant", "content": "Well.", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    ]}  # fmt: skip
    messages = [{"role": "system", "content": "Be brief."}, *HI, called, {"role": "tool", "content": "Sun"}]
    answer = chat(engine, messages=messages).json()
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert engine.prompt.startswith("[system] Be brief.\n\nYou may call functions")
    assert json.dumps(WEATHER) in engine.prompt
    assert f"[assistant] Well.\n\n{CALL}\n" in engine.prompt
    assert "[user] <tool_response>\nSun\n</tool_response>" in engine.prompt
    assert chat(engine, messages=HI).status == 200
    assert engine.prompt.startswith("[system] You may call functions")
    assert chat(engine, messages=[{**called, "tool_calls": [{}]}]).status == 400


def test_marks_that_are_special_tokens_are_seen() -> None:
    """<|im_start|> is one in this tokenizer, and hidden as a rule."""
    says = "[TOOL_CALLS]" + '[{"name": "clock", "arguments": {}}]'
    template = "{# [TOOL_CALLS] #}" + TOOL_TEMPLATE
    choice = said(says, template)
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "clock", "arguments": "{}"}
    assert len(choice["message"]["tool_calls"][0]["id"]) == 9
    engine = SpeakingEngine("Yes.", template)
    assert engine.tokenizer is not None
    engine.tokenizer._encoder.add_special_tokens([])
    chat(engine)
    assert engine.requests[-1].sampling_params.skip_special_tokens


def test_options_name_the_formats() -> None:
    says = '{"name": "clock", "parameters": {}}'
    named = chat(SpeakingEngine(says, HERMES), {"tool_call_parser": "llama3_json"})
    assert named.json()["choices"][0]["finish_reason"] == "tool_calls"
    off = chat(SpeakingEngine(CALL, HERMES), {"enable_auto_tool_choice": False})
    assert off.json()["choices"][0]["message"]["content"] == CALL
    engine = SpeakingEngine("<think>a</think>b", HERMES)
    assert engine.tokenizer is not None
    engine.tokenizer.reasoning_parser = "none"
    thoughts = chat(engine)
    assert thoughts.json()["choices"][0]["message"]["content"] == "<think>a</think>b"
    with pytest.raises(ConfigError, match="tool_call_parser is 'x'"):
        app_of(SpeakingEngine(""), tool_call_parser="x")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [{}]}, r"tools\[0\] is {}, allowed is {'type': 'function'"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\] is"),
        ({"tools": [{"function": {"name": "a b"}}]}, r"tools\[0\].function.name is 'a b', allowed are"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "parameters is"),
        ({"tools": [{"function": {"name": "f", "parameters": {"type": "string"}}}]}, "parameters.type is 'string'"),
        ({"tools": [{"function": {"name": "f", "strict": 1}}]}, "strict is 1"),
        ({"tools": [{"function": {"name": "f", "description": 1}}]}, "description is 1"),
        ({"tools": [CLOCK, CLOCK]}, "an earlier tool"),
        ({"tools": [CLOCK] * 1025}, "holds 1025 tools"),
        ({"tool_choice": "any"}, "tool_choice is 'any', allowed are none, auto"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "names 'g', allowed are"),
        ({"tool_choice": {"type": "function"}}, "tool_choice is"),
        (allowed("none", "clock"), "tool_choice.allowed_tools.mode is 'none', allowed are auto and required"),
        (allowed("auto"), r"tool_choice.allowed_tools.tools is \[\], allowed is a list"),
        (allowed("auto", "g"), "tool_choice names 'g', allowed are the names of tools"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools.mode is None"),
        ({"tools": None, "tool_choice": "required"}, "tools is empty"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "allowed is one of the two"),
        ({"reasoning_effort": "huge"}, "reasoning_effort is 'huge', allowed are none, minimal"),
        ({"chat_template_kwargs": {"tools": []}}, "has the key 'tools'"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    answer = chat(SpeakingEngine("Hi", HERMES), **fields)
    assert answer.status == 400, answer.json()
    assert re.search(words, answer.error["message"]), answer.error


def test_an_unknown_format_is_refused_with_what_to_do() -> None:
    answer = chat(SpeakingEngine("Hi"))
    assert answer.status == 400
    assert "--tool-call-parser" in answer.error["message"]


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "function", "name", "parameters", "strict", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(field=st.sampled_from(["tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"]), value=_ANY)
def test_any_value_is_taken_or_refused(field: str, value: Any) -> None:
    assert chat(SpeakingEngine(CALL, HERMES), **{field: value}).status in (200, 400)


def test_tools_that_json_cannot_say_are_told() -> None:
    for name, message, tool in (
        ("tools", {}, {"x": b"y"}),
        ("arguments", {"tool_calls": [{"function": {"name": "f", "arguments": {"x": b"y"}}}]}, {}),
    ):
        with pytest.raises(InvalidRequestError, match=f"{name} has {{'x': b'y'}}, allowed is what JSON can say"):
            with_tools([{"role": "assistant", "content": "", **message}], [tool])


def test_strict_functions_have_a_grammar_also_where_the_model_decides() -> None:
    engine = SpeakingEngine(CALL, HERMES)
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    assert chat(engine, tools=[strict]).json()["choices"][0]["finish_reason"] == "tool_calls"
    assert engine.requests[-1].grammar is not None
    for fields in ({"tools": TOOLS}, {"tools": [strict], "tool_choice": "none"}):
        assert chat(engine, **fields).status == 200
        assert engine.requests[-1].grammar is None
    assert chat(engine, tools=[strict], response_format={"type": "json_object"}).status == 200
    form = engine.requests[-1].sampling_params.structured_outputs
    assert form is not None
    assert str(form.grammar).startswith("start: form | calls\n"), "the model may call before it answers"
    assert chat(engine, tools=[strict], structured_outputs={"json_object": True}).status == 200
    form = engine.requests[-1].sampling_params.structured_outputs
    assert (form is not None, form and form.grammar) == (True, None)


def test_where_strict_binds_nothing_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = SpeakingEngine("Hm.", "{# <function= <parameter= #}" + TOOL_TEMPLATE)
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    app = app_of(engine)
    for tools in (TOOLS, [strict], [strict]):
        assert post(app, "/v1/chat/completions", {"messages": HI, "tools": tools}).status == 200
        assert engine.requests[-1].grammar is None
    (warning,) = [one.getMessage() for one in caplog.records if "strict" in one.getMessage()]
    assert "the format qwen3_coder cannot be held" in warning


def test_a_conversation_with_tools_can_be_counted() -> None:
    app = app_of(SpeakingEngine("", HERMES))
    counts = [post(app, "/tokenize", {"messages": HI, "tools": tools}).json()["count"] for tools in (None, TOOLS)]
    assert counts[0] < counts[1]
    assert post(app, "/tokenize", {"messages": HI, "tools": [{}]}).status == 400


def test_harmonys_forced_calls_begin_at_once_and_its_forms_in_the_final_message() -> None:
    template = "{# <|channel|>analysis functions #}" + TOOL_TEMPLATE
    says = "<|channel|>commentary to=functions.clock <|constrain|>json<|message|>{}"
    engine = SpeakingEngine(says, template)
    answer = chat(engine, tool_choice="required").json()["choices"][0]
    assert answer["message"]["tool_calls"][0]["function"] == {"name": "clock", "arguments": "{}"}
    assert (engine.requests[-1].grammar is None, engine.requests[-1].thoughts) == (False, None)
    engine.says = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{}"
    message = chat(engine, response_format={"type": "json_object"}).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Hm.", "{}")
    thoughts = engine.requests[-1].thoughts
    assert engine.tokenizer is not None
    assert thoughts is not None
    assert engine.tokenizer.decode(thoughts.end) == "<|channel|>final<|message|>"


# Forced calls, by a real engine


@pytest.fixture(scope="module")
def client(tiny_folder: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = spelling_model(tiny_folder, tmp_path_factory.mktemp("tools"))
    template = "{% if tools %}{{ tools[0].function.name }}{% endif %}{{ messages[0].content }}{# <tool_call> <think> #}"
    llm = AsyncLLM(str(folder), dtype="float32", max_model_len=256, max_num_seqs=8, chat_template=template)
    with (
        serve(create_app(llm, ServerSettings(served_model_name=("tiny",)))) as address,
        httpx.Client(base_url=address, timeout=60) as made,
    ):
        yield made
    llm.shutdown()


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_always_parses(client: httpx.Client, choice: Any, stream: bool) -> None:
    tools = [{"type": "function", "function": {**WEATHER["function"], "strict": True}}]  # type: ignore[dict-item]
    hi = [{"role": "user", "content": "Hi</think>"}]  # it would think otherwise, and never stop
    body = {"messages": hi, "tools": tools, "tool_choice": choice, "parallel_tool_calls": False, "stream": stream}
    answer = client.post("/v1/chat/completions", json={**body, "max_tokens": 200, "seed": 1})
    assert answer.status_code == 200, answer.text
    if stream:
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        made = joined([json.loads(line) for line in lines[:-1]] + lines[-1:])
        (call,), reason = made["calls"], made["finish_reason"]
    else:
        found = answer.json()["choices"][0]
        (call,), reason = found["message"]["tool_calls"], found["finish_reason"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
    assert reason == "tool_calls"


def test_a_forced_call_comes_behind_the_thoughts(client: httpx.Client) -> None:
    """The model writes nonsense until the budget forces the mark; then the grammar begins."""
    asked = {"messages": [{"role": "user", "content": "Hi<think>"}], "tools": TOOLS[:1], "tool_choice": "required"}
    body = {**asked, "thinking_token_budget": 9, "max_tokens": 160, "parallel_tool_calls": False, "seed": 4}
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert choice["message"]["content"] is None
    body = {**body, "tools": None, "tool_choice": None, "structured_outputs": {"choice": ["Rome", "Oslo"]}}
    message = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert message["content"] in ("Rome", "Oslo")


def test_a_schema_that_cannot_be_kept_is_refused_where_it_is_strict(client: httpx.Client) -> None:
    for is_strict, status in ((True, 400), (False, 200)):
        function = {"name": "f", "strict": is_strict, "parameters": {"type": "object", "not": {}, "maxProperties": 0}}
        hi = [{"role": "user", "content": "Hi</think>"}]
        body = {"messages": hi, "tools": [{"function": function}], "tool_choice": "required", "max_tokens": 60}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == status, answer.text
