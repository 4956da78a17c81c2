"""Conversations over HTTP, as clients send them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.request import ModelInfo
from octavo.sampling_params import SamplingParams
from tests.server.scripted_engine import ScriptedEngine, app_of, post

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


class RecommendingEngine(ScriptedEngine):
    """Its model's makers recommend answers of nine tokens at most."""

    @property
    def model_info(self) -> ModelInfo:
        return replace(super().model_info, default_sampling_params=SamplingParams(max_tokens=9))


def test_a_recommended_length_limits_answers_whose_request_names_none() -> None:
    engine = RecommendingEngine()
    for url, body in (("/v1/chat/completions", {"messages": [USER]}), ("/v1/completions", {"prompt": "Hi"})):
        for fields, most in (({}, 9), ({"max_tokens": 12}, 12)):
            assert post(app_of(engine), url, body | fields).status == 200
            assert engine.requests[-1].sampling_params.max_tokens == most
    for options, most in (({}, 9), ({"num_predict": 12}, 12)):
        body = {"model": "tiny", "messages": [USER], "options": options, "stream": False}
        assert post(app_of(engine), "/api/chat", body).status == 200
        assert engine.requests[-1].sampling_params.max_tokens == most
