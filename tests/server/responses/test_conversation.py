"""Items as messages of a chat."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.server.api_errors import ApiError
from octavo.server.responses.conversation import messages_of


def text(value: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": kind, "text": value}


def call(number: str, name: str = "f") -> dict[str, Any]:
    return {"type": "function_call", "id": "fc", "call_id": number, "name": name, "arguments": "{}"}


def output(number: str, value: Any = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": number, "output": value}


def thoughts(value: str, key: str = "content") -> dict[str, Any]:
    kind = "reasoning_text" if key == "content" else "summary_text"
    return {"type": "reasoning", "id": "rs", "summary": [], key: [text(value, kind)]}


def said(value: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [text(value, "output_text")], "status": "completed"}


def made(*items: dict[str, Any]) -> list[dict[str, Any]]:
    return messages_of([(f"input[{place}]", item) for place, item in enumerate(items)])


def assistant(content: str | None, *calls: str, **more: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content, **more}
    if calls:
        function = {"name": "f", "arguments": "{}"}
        message["tool_calls"] = [{"id": one, "type": "function", "function": function} for one in calls]
    return message


def tool(number: str, content: str = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": number, "name": "f", "content": content}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Hi"}]),
        ([{"role": "developer", "content": [text("a"), text("b")]}], [{"role": "developer", "content": "a\nb"}]),
        ([thoughts("Hm."), said("A"), call("1")], [assistant("A", "1", reasoning="Hm.")]),
        ([thoughts("Hm.", "summary"), said("A")], [assistant("A", reasoning="Hm.")]),
        ([call("1"), call("2"), output("1"), output("2")], [assistant(None, "1", "2"), tool("1"), tool("2")]),
        ([call("1"), output("1", [text("x"), text("y")])], [assistant(None, "1"), tool("1", "x\ny")]),
        (
            [thoughts("a"), call("1"), output("1"), thoughts("b"), said("B")],
            [assistant(None, "1", reasoning="a"), tool("1"), assistant("B", reasoning="b")],
        ),
        ([said("A"), said("B")], [assistant("A"), assistant("B")]),
        ([said("A"), call("1"), said("B"), output("1")], [assistant("A\nB", "1"), tool("1")]),
        ([said("A"), thoughts("b"), call("1")], [assistant("A"), assistant(None, "1", reasoning="b")]),
        ([{"type": "reasoning", "summary": [], "encrypted_content": None}, said("A")], [assistant("A")]),
        ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}], [assistant("No.")]),
    ],
)
def test_items_become_turns(items: list[dict[str, Any]], messages: list[dict[str, Any]]) -> None:
    assert made(*items) == messages


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(("type", "text", "a")), inner, max_size=3)
    ),
    max_leaves=4,
)
KINDS = st.sampled_from(("message", "function_call", "function_call_output", "reasoning", "", "image"))
PART_KINDS = st.sampled_from(("input_text", "output_text", "refusal", "summary_text"))
PARTS = st.lists(st.fixed_dictionaries({"type": PART_KINDS}, optional={"text": JSON}), max_size=3)
FIELDS = {
    "role": st.sampled_from(("user", "assistant", "system")) | JSON,
    "content": PARTS | JSON,
    "output": PARTS | JSON,
    "summary": PARTS | JSON,
    "call_id": st.sampled_from("12") | JSON,
    "name": JSON,
    "arguments": JSON,
    "id": JSON,
    "status": JSON,
}


@settings(max_examples=60)
@given(st.lists(st.fixed_dictionaries({}, optional={"type": KINDS | JSON, **FIELDS}), max_size=4))
def test_any_item_is_read_or_refused_by_its_place(items: list[dict[str, Any]]) -> None:
    messages: list[dict[str, Any]] = []
    refusal: ApiError | None = None
    try:
        messages = made(*items)
    except ApiError as error:
        refusal = error
    assert refusal is None or (refusal.status == 400 and refusal.message.startswith("input["))
    assert all(isinstance(one["role"], str) for one in messages)
    assert all(one["content"] is None or isinstance(one["content"], str) for one in messages)
