"""Which bodies are accepted, and how others are refused: each error names the field, its value and what is allowed."""

import json
import re

import pytest

from tests.server.scripted_engine import ScriptedEngine, app_of, get, post, without_template

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "tiny", "prompt": "Hi"}
ANTHROPIC = {"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}

REFUSED_CHATS = {
    "unknown": ({"temprature": 1}, "temprature", "did you mean 'temperature'"),
    "tools": (
        {"tools": [{"type": "function"}]},
        "tools",
        r"tools\[0\] is .*, allowed is \{'type': 'function'",
    ),
    "form": ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
    "guided": ({"guided_json": {}}, "guided_json", "use structured_outputs"),
    "functions": ({"logits_processors": ["f"]}, "logits_processors", "functions run offline only"),
    "loops": (
        {"repetition_detection": {"max_pattern_size": 2}},
        "repetition_detection",
        "min_count is 0, allowed is 2",
    ),
    "beam": ({"use_beam_search": True, "n": 3, "best_of": 2}, None, "best_of is 2, allowed is n=3 or more"),
    "beams": ({"use_beam_search": True, "best_of": 5}, None, "best_of is 5, allowed is up to max_num_seqs = 4"),
    "beam-stop": ({"use_beam_search": True, "stop": "x"}, None, "stop is set and use_beam_search is True"),
    "no-beams": ({"length_penalty": 2}, None, "length_penalty is 2.0, but use_beam_search is False"),
    "early": ({"use_beam_search": True, "early_stopping": "x"}, None, "early_stopping"),
    "true-is-not-1": ({"best_of": True}, "best_of", "allowed is"),
    "part": ({"max_tokens": 3.5}, "max_tokens", "max_tokens is 3.5, allowed is int or null"),
    "type": ({"max_tokens": "x"}, "max_tokens", "max_tokens is 'x', allowed is int or null"),
    "deep-type": ({"stop": ["a", 7]}, "stop", r"stop\[1\] is 7, allowed is str"),
    "range": ({"top_p": 3}, "top_p", "top_p is 3, allowed is above 0 to 1"),
    "n": ({"n": 9}, "n", "max_num_seqs = 4"),
    "logprobs": ({"logprobs": True, "top_logprobs": 9}, "top_logprobs", "top_logprobs is 9, allowed is 0 to 5"),
    "pair": ({"top_logprobs": 2}, "top_logprobs", "set logprobs to true"),
    "stream": ({"stream_options": {"include_usage": True}}, "stream_options", "set stream to true"),
    "asked-tokens": ({"logprob_token_ids": [5]}, "logprob_token_ids", "logprobs is not, allowed is both or neither"),
    "far-token": ({"logprobs": True, "logprob_token_ids": [10**6]}, None, "logprob_token_ids"),
    "padding": (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        *("stream_options", "include_obfuscation is true"),
    ),
    "limits": ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "send one of them"),
    "limit": ({"max_completion_tokens": 0}, "max_completion_tokens", "allowed is 1 or more"),
    "context": ({"max_completion_tokens": 500}, "max_completion_tokens", "is 500, allowed are up to 128, the model's"),
    "side": ({"truncation_side": "top"}, "truncation_side", "'top', allowed are left and right"),
    "truncation": ({"truncate_prompt_tokens": 500}, "truncate_prompt_tokens", "is 500, allowed are 1 to 127"),
    "all-logprobs": ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "is -1, allowed is 0 to 5"),
    "less": ({"prompt_logprobs": -2}, "prompt_logprobs", "is -2, allowed is 0 to 5"),
    "bias": ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "allowed are token ids"),
    "bias-size": ({"logit_bias": {"7": 10**400}}, "logit_bias[7]", "number of 1329 bits, allowed is from -100 to 100"),
    "stops": ({"stop": ["x"] * 65}, "stop", "holds 65 strings, allowed are 64"),
    "stop-len": ({"stop": "x" * 2000}, "stop", "a string of 2000 characters"),
    "priority": ({"priority": 2**40}, "priority", "allowed is -2147483648 to 2147483648"),
    "interval": ({"stream": True, "stream_interval": 0}, "stream_interval", "allowed is 1 to"),
    "request-id": ({"request_id": "a\nb"}, "request_id", "visible ASCII"),
    "salt": ({"cache_salt": ""}, "cache_salt", "at least one character"),
    "role": ({"messages": [{"role": "", "content": "Hi"}]}, "messages", r"messages\[0\].role is '', allowed is a name"),
    "no-role": ({"messages": [{"content": "Hi"}]}, "messages", r"messages\[0\].role is None"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "'image_url'"),
    "null": ({"messages": [{"role": "user", "content": None}]}, "messages", "content is missing or null"),
    "none": ({"messages": []}, "messages", "holds 0 messages"),
    "template": ({"chat_template": "/etc/passwd"}, "chat_template", "takes no templates from requests"),
    "variables": ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs", "the key 'chat_template'"),
    "self": ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs", "the key 'self'"),
    "surrogate": ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "UTF-8"),
}


@pytest.mark.parametrize("name", REFUSED_CHATS)
def test_a_chat_is_refused_by_name(name: str) -> None:
    fields, param, message = REFUSED_CHATS[name]
    answer = post(app_of(), "/v1/chat/completions", CHAT | fields)
    assert answer.status == 400, answer.body
    assert answer.error["type"] == "invalid_request_error"
    if param is not None:
        assert answer.error["param"] == param
    assert re.search(message, answer.error["message"]), answer.error["message"]


def test_what_asks_for_nothing_is_accepted() -> None:
    nothing = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "session_id": "s",
        "tools": None,
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "spaces_between_special_tokens": True,
        "n": None,
        "stop": None,
    }
    assert post(app_of(), "/v1/chat/completions", CHAT | nothing).status == 200


def test_no_spaces_between_special_tokens_is_what_one_gets_anyway() -> None:
    for asked in (True, False, None):
        fields = {"skip_special_tokens": False, "spaces_between_special_tokens": asked}
        assert post(app_of(), "/v1/chat/completions", CHAT | fields).status == 200
    for wrong in (0, "no"):
        refused = post(app_of(), "/v1/chat/completions", CHAT | {"spaces_between_special_tokens": wrong})
        assert refused.status == 400
        assert "allowed is leaving it out or true or false" in refused.error["message"]


def test_fields_reach_the_engine() -> None:
    engine = ScriptedEngine()
    fields = {
        "top_k": 7,
        "seed": 5,
        "stop": "END",
        "stop_token_ids": [9],
        "logit_bias": {"11": -2},
        "min_tokens": 2,
        "bad_words": ["bad"],
        "priority": 3,
        "cache_salt": "mine",
        "request_id": "my-id",
        "truncate_prompt_tokens": 4,
        "max_tokens": 9,
    }
    answer = post(app_of(engine), "/v1/completions", {"prompt": [1, 2, 3, 4, 5, 6]} | fields)
    assert answer.json()["id"] == "cmpl-my-id"
    (request,) = engine.requests
    params = request.sampling_params
    assert (params.top_k, params.seed, params.stop, params.stop_token_ids) == (7, 5, ("END",), (9,))
    assert (params.logit_bias, params.min_tokens, params.bad_words) == ({11: -2.0}, 2, ("bad",))
    assert params.temperature == 0.5, "the model's own default, where the request is silent"
    assert (request.priority, request.cache_salt, request.prompt_token_ids) == (3, "mine", [3, 4, 5, 6])
    assert request.request_id.startswith("cmpl-my-id")


def test_whole_numbers_may_be_written_with_a_point() -> None:
    engine = ScriptedEngine()
    answer = post(app_of(engine), "/v1/completions", {"prompt": "Hi", "max_tokens": 3.0, "top_k": 5.0, "seed": 7.0})
    assert answer.status == 200, answer.body
    params = engine.requests[-1].sampling_params
    assert (params.max_tokens, params.top_k, params.seed) == (3, 5, 7)


def test_any_role_that_the_template_takes() -> None:
    pirate = {"messages": [{"role": "pirate", "content": "Hi"}]}
    assert post(app_of(), "/v1/chat/completions", CHAT | pirate).status == 200


def test_a_model_without_a_template_says_what_to_do_instead() -> None:
    app = app_of(without_template(ScriptedEngine()))
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions/batch", {"messages": [CHAT["messages"]]}),
    ):
        refused = post(app, path, body)
        assert (refused.status, refused.error["code"], refused.error["param"]) == (400, "no_chat_template", "messages")
        for way in ("/v1/completions", "--chat-template FILE"):
            assert way in refused.error["message"]
    assert "no chat template" in post(app, "/v1/messages", ANTHROPIC).json()["error"]["message"]
    assert get(app, "/v1/models").json()["data"][0]["has_chat_template"] is False
    assert get(app_of(), "/v1/models").json()["data"][0]["has_chat_template"] is True


def test_more_than_the_context_leaves_is_what_it_leaves() -> None:
    engine = ScriptedEngine()
    assert post(app_of(engine), "/v1/chat/completions", CHAT | {"max_completion_tokens": 128}).status == 200
    assert post(app_of(engine), "/v1/completions", {"prompt": [5] * 120, "max_tokens": 100}).status == 200
    for request in engine.requests:
        assert request.max_output_tokens == 128 - len(request.prompt_token_ids)
    refused = post(app_of(), "/v1/completions", {"prompt": [5], "max_tokens": 129})
    assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, [7, 8, 9]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, [7, 8, 9]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, [4, 5, 6]),
        ({"truncate_prompt_tokens": -1, "max_tokens": 125}, [7, 8, 9]),
        ({"truncation_side": "right"}, [4, 5, 6, 7, 8, 9]),
    ],
)
def test_a_prompt_is_cut_where_it_is_asked_to_be(fields: dict[str, object], kept: list[int]) -> None:
    engine = ScriptedEngine()
    answer = post(app_of(engine), "/v1/completions", {"prompt": [4, 5, 6, 7, 8, 9], "echo": True} | fields)
    assert engine.requests[0].prompt_token_ids == kept
    tokenizer = engine.get_tokenizer()
    assert tokenizer is not None
    assert answer.json()["choices"][0]["text"].startswith(tokenizer.decode(kept, skip_special_tokens=False) + " one")


def test_limits_are_the_rest_of_the_context_for_chats_and_16_for_completions() -> None:
    engine = ScriptedEngine()
    post(app_of(engine), "/v1/chat/completions", CHAT)
    post(app_of(engine), "/v1/completions", TEXT)
    post(app_of(engine), "/v1/completions", {"prompt": [5] * 120})
    lens = [request.sampling_params.max_tokens for request in engine.requests]
    assert lens == [128 - len(engine.requests[0].prompt_token_ids), 16, 8]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], r"prompt is \[\]"),
        (["a", 1], "prompt mixes"),
        ([[1], "a"], "prompt mixes"),
        (["a"] * 9, "holds 9 prompts, allowed are 8"),
        ([[1], [10**9]], r"prompt\[1\]: .*token id 1000000000"),
        ("", "prompt is empty"),
        ([[]], "prompt is empty"),
        ("word " * 200, "prompt has .* tokens, allowed are 127"),
        ([1.5], r"prompt\[0\] is 1.5"),
        ([-1], "token id -1"),
    ],
)
def test_a_prompt_is_refused(prompt: object, message: str) -> None:
    answer = post(app_of(max_prompts_per_request=8), "/v1/completions", {"prompt": prompt})
    assert answer.status == 400
    assert re.search(message, answer.error["message"]), answer.error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"prompt":"\xff"}', "not JSON"),
        (b'{"prompt":"a","top_p":NaN}', "not JSON"),
        (b"[" * 90_000, "nested too deeply"),
        (b'{"prompt":' + b"[" * 90_000, "nested too deeply|not JSON"),
        (b"[]", "allowed is an object"),
        (b"{}", "prompt is missing"),
        (b'{"prompt":"a","\xc3\xa9":1}', "there is no parameter"),
    ],
)
def test_a_body_is_refused(body: bytes, message: str) -> None:
    answer = post(app_of(), "/v1/completions", body)
    assert answer.status == 400
    assert re.search(message, answer.error["message"]), answer.error["message"]


def test_deep_variables_fail_the_template_not_the_server() -> None:
    deep: object = 1
    for _ in range(500):
        deep = [deep]
    answer = post(app_of(), "/v1/chat/completions", CHAT | {"documents": [{"a": deep}]})
    assert answer.status in (200, 400)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens is None, allowed is int"),
        ({"tools": [{"type": "web_search_20250305", "name": "f"}]}, r"tools\[0\].type is .*, allowed is custom"),
        ({"tools": [{"name": "f", "input_schema": 1}]}, r"tools\[0\].input_schema is 1"),
        ({"tools": [{"name": "f", "inputs": {}}]}, r"tools\[0\] has the key 'inputs'"),
        ({"tool_choice": {"type": "all"}}, "tool_choice is .*, allowed is a type"),
        ({"thinking": {"type": "on"}}, "thinking is .*, allowed is a type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking is"),
        ({"temperature": 1.5}, "temperature is 1.5, allowed is 0 to 1"),
        ({"stop_sequences": [""]}, "stop_sequences is"),
        ({"messages": [{"role": "system", "content": "x"}]}, "allowed are user and assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a block of type 'image'"),
        ({"messages": [{"role": "user", "content": "x " * 5000}]}, "one new token must fit; shorten it$"),
    ],
)
def test_a_message_is_refused_in_anthropics_shape(fields: dict[str, object], message: str) -> None:
    answer = post(app_of(), "/v1/messages", ANTHROPIC | fields)
    assert answer.status == 400
    told = json.loads(answer.body)
    assert told["type"] == "error"
    assert told["error"]["type"] == "invalid_request_error"
    assert re.search(message, told["error"]["message"]), told
