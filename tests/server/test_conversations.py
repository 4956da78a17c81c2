"""Conversations over HTTP, as clients send them."""

from __future__ import annotations

from typing import Any

from tests.server.scripted_engine import app_of, post

CALL = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
USER = {"role": "user", "content": "Hi"}


def prompt_of(*messages: dict[str, Any]) -> str:
    """The model's prompt; its template prints every role with a text."""
    app = app_of()
    tokens = post(app, "/tokenize", {"messages": list(messages)}).json()["tokens"]
    return str(post(app, "/detokenize", {"tokens": tokens}).json()["prompt"])


def test_a_developer_speaks_as_the_system() -> None:
    told = prompt_of({"role": "developer", "content": "Be brief."}, USER)
    assert told == prompt_of({"role": "system", "content": "Be brief."}, USER)
    assert "<|im_start|>system\nBe brief.<|im_end|>" in told


def test_an_assistant_may_only_call_tools() -> None:
    silent = [{"tool_calls": [CALL]}, {"tool_calls": [CALL], "content": None}, {"content": None, "tool_calls": []}]
    for message in silent:
        told = prompt_of(USER, {"role": "assistant", **message}, USER)
        assert "<|im_start|>assistant\n<|im_end|>" in told
        assert "None" not in told


def test_others_must_say_something() -> None:
    for message in ({"role": "user", "content": None}, {"role": "assistant"}):
        answer = post(app_of(), "/tokenize", {"messages": [message]})
        assert answer.status == 400
        assert "messages[0].content is missing or null" in answer.error["message"]
