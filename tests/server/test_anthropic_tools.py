"""Tools and thoughts for Anthropic's clients: blocks in both directions, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.live_server import serve
from tests.server.scripted_engine import Answer, app_of, post
from tests.server.speaking_engine import SpeakingEngine
from tests.server.test_tools import CALL, CITY, HERMES

TOOLS = [{"name": "weather", "description": "Tells it.", "input_schema": CITY}, {"name": "clock", "input_schema": {}}]
HI = [{"role": "user", "content": "Hi"}]
SAYS = f"<think>\nHm.\n</think>\n\nLet me look.\n{CALL}\n{CALL}"


def ask(engine: SpeakingEngine, **fields: Any) -> Answer:
    return post(app_of(engine), "/v1/messages", {"messages": HI, "max_tokens": 500, "tools": TOOLS, **fields})


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_client_gets_blocks(is_streamed: bool) -> None:
    import anthropic  # it takes seconds, which each worker of pytest-xdist would spend to collect the tests

    with (
        serve(app_of(SpeakingEngine(SAYS, HERMES))) as address,
        anthropic.Anthropic(base_url=address, api_key="x", max_retries=0) as client,
    ):
        asked: dict[str, Any] = {"model": "tiny", "max_tokens": 500, "messages": HI, "tools": TOOLS}
        if is_streamed:
            with client.messages.stream(**asked) as stream:
                message = stream.get_final_message()
        else:
            message = client.messages.create(**asked)
    thought, text, first, second = message.content
    assert message.stop_reason == "tool_use"
    assert (thought.type, text.type, first.type, second.type) == ("thinking", "text", "tool_use", "tool_use")
    assert (thought.thinking, text.text) == ("\nHm.\n", "Let me look.")
    assert (first.name, first.input) == (second.name, second.input) == ("weather", {"city": "Rome"})
    assert first.id != second.id
    assert message.usage.output_tokens_details is not None
    assert 1 <= message.usage.output_tokens_details.thinking_tokens <= 5


def test_events_open_and_close_each_block() -> None:
    events = ask(SpeakingEngine(SAYS, HERMES), stream=True).events()
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    open_at: int | None = None
    for event in events:
        if event["type"] == "content_block_start":
            assert open_at is None
            open_at = event["index"]
        elif event["type"] in ("content_block_delta", "content_block_stop"):
            assert event["index"] == open_at
            open_at = None if event["type"] == "content_block_stop" else open_at


def test_an_answer_without_calls_or_text() -> None:
    for says, content in (("Fine.", "Fine."), (CALL[:-20], CALL[:-20])):
        body = ask(SpeakingEngine(says, HERMES)).json()
        assert [(one["type"], one["text"]) for one in body["content"]] == [("text", content)]
        assert body["stop_reason"] == "end_turn"
    hidden = ask(SpeakingEngine("<think>Hm.</think>", HERMES), thinking={"type": "disabled"})
    assert [(one["type"], one["text"]) for one in hidden.json()["content"]] == [("text", "")]
    streamed = ask(SpeakingEngine("<think>Hm.</think>", HERMES), thinking={"type": "disabled"}, stream=True)
    assert [one["type"] for one in streamed.events()].count("content_block_start") == 1


def test_thinking_reaches_the_template_and_the_engine() -> None:
    engine = SpeakingEngine("Hm.</think>Yes.", HERMES)
    body = ask(engine, thinking={"type": "enabled", "budget_tokens": 64}).json()
    assert [one["type"] for one in body["content"]] == ["thinking", "text"]
    assert engine.prompt.endswith("<think>\n")
    thoughts = engine.requests[-1].thoughts
    assert thoughts is not None
    assert (thoughts.is_begun, thoughts.budget) == (True, 64)
    refused = ask(engine, thinking={"type": "enabled", "budget_tokens": 0})
    assert (refused.status, "thinking.budget_tokens is 0" in refused.json()["error"]["message"]) == (400, True)


def test_blocks_become_messages() -> None:
    engine = SpeakingEngine("Fine.", HERMES)
    used = [
        {"type": "thinking", "thinking": "Look!", "signature": ""},
        {"type": "text", "text": "Well."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Sun"}]},
        {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": "no such city"},
        {"type": "text", "text": "So?"},
    ]
    messages = [*HI, {"role": "assistant", "content": used}, {"role": "user", "content": results}]
    assert ask(engine, messages=messages).status == 200
    assert "assistant: Look! Well.Rome" in engine.prompt
    assert engine.prompt.endswith("tool:  Suntool:  Error: no such cityuser:  So?assistant:")
    assert ask(engine, messages=[*HI, {"role": "assistant", "content": used[1:2]}]).status == 200
    assert engine.prompt.endswith("Well.")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"type": "tool_use", "id": "a", "name": "f", "input": "x"}, "whose input is 'x', not an object"),
        ({"type": "tool_result", "content": ""}, "whose tool_use_id is None, not a text"),
        ({"type": "thinking"}, "whose thinking is None"),
        ({"type": "text", "text": "a", "x": 1}, "has the key 'x'"),
        ({"type": "redacted_thinking", "data": ""}, "a block of type 'redacted_thinking', allowed are"),
    ],
)
def test_a_bad_block_is_refused(block: dict[str, Any], words: str) -> None:
    role = "user" if block["type"] == "tool_result" else "assistant"
    answer = ask(SpeakingEngine("Hi", HERMES), messages=[*HI, {"role": role, "content": [block]}])
    assert answer.status == 400
    assert words in json.loads(answer.body)["error"]["message"]


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["text", "tool_use", "tool_result", "thinking"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "text", "name", "input", "input_schema", "content", "budget_tokens", "tool_use_id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(field=st.sampled_from(["tools", "tool_choice", "thinking", "content"]), value=_ANY)
def test_any_value_is_taken_or_refused(field: str, value: Any) -> None:
    fields = {"messages": [{"role": "user", "content": value}]} if field == "content" else {field: value}
    assert ask(SpeakingEngine(CALL, HERMES), **fields).status in (200, 400)
