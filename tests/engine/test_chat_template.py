"""Chat templates: as transformers renders them, and what is said about messages that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from octavo.engine.chat_template import render
from octavo.errors import InvalidRequestError, TokenizerError

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING = """
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant', 'system', 'tool'] %}
        {{- raise_exception('no role ' + message.role) }}
    {%- endif %}
    {%- if loop.index > 8 %}{% break %}{% endif %}
    <{{ message.role }}>{{ message.content | trim }}</{{ message.role }}>
{% endfor %}
{% if add_generation_prompt %}
    <assistant>
{%- endif %}
"""
TOOLS = """{{ bos_token }}{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}
{% endfor %}{% endif %}{{ messages | tojson }}{% for m in messages %}{% if m.role == 'assistant' %}
{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}{{ mood | default('plain') }}"""

USER = {"role": "user", "content": "  Hi, wörld! 👋 <b> \n"}
ASSISTANT = {"role": "assistant", "content": " Sure, here is"}
TOOL = {
    "type": "function",
    "function": {"name": "now", "description": "Grüße & <more>", "parameters": {"a": [1, None]}},
}


def ours(template: str, messages: Any, prompt: bool = False, go_on: bool = False, **variables: Any) -> str:
    variables = {"bos_token": "<s>", "tools": None, "documents": None, **variables}
    return render(template, messages, add_generation_prompt=prompt, continue_final_message=go_on, variables=variables)


def theirs(template: str, messages: Any, prompt: bool = False, go_on: bool = False, **variables: Any) -> str:
    backend = Tokenizer(models.BPE(vocab={"<s>": 0}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", chat_template=template)
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt, continue_final_message=go_on, **variables
    )
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("template", [CHATML, TRIMMING, TOOLS])
@pytest.mark.parametrize("options", [{}, {"prompt": True}, {"tools": [TOOL]}, {"mood": "glad"}])
def test_renders_as_transformers_does(template: str, options: dict[str, Any]) -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER, ASSISTANT]
    assert ours(template, messages, **options) == theirs(template, messages, **options)


@pytest.mark.parametrize("content", ["Sure", "Sure ", " Sure", "Sure,  \n"])
def test_a_continued_message_ends_where_its_content_does(content: str) -> None:
    messages = [USER, {"role": "assistant", "content": content}]
    assert ours(CHATML, messages, go_on=True) == theirs(CHATML, messages, go_on=True)
    assert ours(TRIMMING, messages, go_on=True) == theirs(TRIMMING, messages, go_on=True)


def test_a_message_that_is_printed_twice_is_continued_the_second_time() -> None:
    messages = [USER, {"role": "assistant", "content": "Sure"}]
    assert ours("{{ messages[1].content }}, {{ messages[1].content }}.", messages, go_on=True) == "Sure, Sure"


def test_text_parts_are_joined_by_line() -> None:
    parts = [{"type": "text", "text": "one"}, "two"]
    assert ours(CHATML, [{"role": "user", "content": parts}]) == "<|im_start|>user\none\ntwo<|im_end|>\n"


def test_a_tool_call_needs_no_content() -> None:
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "now"}}]}
    assert ours("{{ messages[0].tool_calls[0].function.name }}", [message]) == "now"


def test_the_time_can_be_asked_for() -> None:
    assert ours("{{ strftime_now('%Y') | length }}", [USER]) == "4"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("Hello", "messages is 'Hello', allowed is a list of objects"),
        (["Hello"], r"messages\[0\] is 'Hello', allowed is an object with a 'role'"),
        ([USER, {"content": "x"}], r"messages\[1\] is .* allowed is an object with a 'role'"),
        ([{"role": "user"}], r"messages\[0\] has neither 'content' nor 'tool_calls'"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content is 3, allowed is a list"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            r"messages\[0\].content\[0\] is .*the model reads text",
        ),
        ([{"role": "narrator", "content": "x"}], "refuses these messages: no role narrator"),
    ],
)
def test_messages_that_cannot_be_are_named(messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        ours(TRIMMING, messages)


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(InvalidRequestError, match="both true"):
        ours(CHATML, [USER], prompt=True, go_on=True)
    with pytest.raises(InvalidRequestError, match="no place to continue from"):
        ours("{{ 'nothing' }}", [USER], go_on=True)


def test_a_broken_template_is_named() -> None:
    with pytest.raises(TokenizerError, match="broken at line 2"):
        ours("\n{% for %}", [USER])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.items() }}",
    ],
)
def test_a_template_stays_in_its_sandbox(template: str) -> None:
    with pytest.raises((TokenizerError, InvalidRequestError)):
        ours(template, [USER])


def test_a_template_that_fails_is_the_requests_failure_only() -> None:
    with pytest.raises(InvalidRequestError, match=r"refuses these messages: .* by zero"):
        ours("{{ 1 // 0 }}", [USER])
