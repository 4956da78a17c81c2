"""Many conversations in one call: each is answered as if it had been sent alone."""

import re

import pytest

from tests.server.scripted_engine import IDS, ScriptedEngine, app_of, post

PATH = "/v1/chat/completions/batch"
HI = [{"role": "user", "content": "Hi"}]
LONGER = [{"role": "system", "content": "Be brief."}, *HI]


def test_one_choice_a_conversation_in_their_order() -> None:
    engine = ScriptedEngine()
    told = post(app_of(engine), PATH, {"messages": [HI, LONGER, HI], "max_tokens": 2, "seed": 7}).json()
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in told["choices"]} == {" one two"}
    lengths = [len(request.prompt_token_ids) for request in engine.requests]
    assert told["usage"]["prompt_tokens"] == sum(lengths)
    assert told["usage"]["completion_tokens"] == 6
    alone = ScriptedEngine()
    post(app_of(alone), "/v1/chat/completions", {"messages": LONGER, "max_tokens": 2})
    assert engine.requests[1].prompt_token_ids == alone.requests[0].prompt_token_ids
    assert {request.sampling_params.seed for request in engine.requests} == {7}


def test_each_answer_may_take_what_its_own_prompt_leaves() -> None:
    engine = ScriptedEngine()
    assert post(app_of(engine), PATH, {"messages": [LONGER, HI]}).status == 200
    for request in engine.requests:
        assert request.max_output_tokens == 128 - len(request.prompt_token_ids)


def test_logprobs_and_echo_are_each_conversations_own() -> None:
    begun = [*HI, {"role": "assistant", "content": "Zero"}]
    options = {"echo": True, "logprobs": True, "top_logprobs": 1, "return_token_ids": True, "max_tokens": 1}
    first, second = post(app_of(), PATH, {"messages": [HI, begun], **options}).json()["choices"]
    assert (first["message"]["content"], second["message"]["content"]) == (" one", "Zero one")
    assert second["logprobs"]["content"][0]["token"] == " one"
    assert second["token_ids"] == [IDS[0]]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"messages": []}, "messages", "holds 0 conversations, allowed are 1 to 8"),
        ({"messages": [HI] * 9}, "messages", "holds 9 conversations"),
        ({"messages": HI}, "messages", r"messages\[0\] is .*allowed is array"),
        ({"messages": [HI, []]}, "messages", "conversation 1: messages holds 0 messages"),
        ({"messages": [HI, [{"role": "user", "content": "word " * 200}]]}, "messages", "conversation 1: .* tokens"),
        ({"messages": [HI], "n": 2}, "n", "one answer"),
        ({"messages": [HI], "stream": True}, "stream", "leaving it out"),
        ({"messages": [HI], "prompt_logprobs": 0}, "prompt_logprobs", "leaving it out"),
        ({"messages": [HI], "tools": [{}]}, "tools", "allowed is"),
    ],
)
def test_a_batch_is_refused_by_name(body: dict[str, object], param: str, message: str) -> None:
    answer = post(app_of(max_prompts_per_request=8), PATH, body)
    assert answer.status == 400
    assert answer.error["param"] == param
    assert re.search(message, answer.error["message"]), answer.error["message"]
