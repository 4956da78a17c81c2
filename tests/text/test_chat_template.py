"""Chat templates render as in transformers; messages that cannot be rendered give clear errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from octavo.errors import InvalidRequestError, TokenizerError
from octavo.text.chat_template import render

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


def ours(
    template: str, messages: Any, prompt: bool = False, go_on: bool = False, form: Any = "auto", **variables: Any
) -> str:
    variables = {"bos_token": "<s>", "tools": None, "documents": None, **variables}
    options = {"add_generation_prompt": prompt, "continue_final_message": go_on, "content_format": form}
    return render(template, messages, variables=variables, **options)


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


#: each prints a message's parts with a bar after each; the second refuses content that is not a list of parts
IN_PARTS = {
    "loop": "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}|{% endfor %}{% endfor %}",
    "asks": """{% for m in messages %}{% if m.content is string %}{{ m.content }}|{% else %}{% for p in m.content %}
{{- p.text }}|{% endfor %}{% endif %}{% endfor %}""",
    "macro": """{% macro show(content) %}{% for p in content %}{{ p.text }}|{% endfor %}{% endmacro %}
{%- for m in messages %}{{ show(m.content) }}{% endfor %}""",
    "set": """{% for m in messages %}{% set words = m.get('content') or [] %}{% for p in words %}{{ p.text }}|
{%- endfor %}{% endfor %}""",
    "filter": """{% for m in messages %}{{ m.content | map(attribute='text') | join('|') }}|{% endfor %}""",
    "namespace": """{% set ns = namespace(now=none) %}{% for m in messages %}{% set ns.now = m.content %}
{%- for p in ns.now | selectattr('type', 'equalto', 'text') %}{{ p.text }}|{% endfor %}{% endfor %}""",
}
IN_ONE_TEXT = {
    "plain": "{% for m in messages %}{{ m.content }}|{% endfor %}",
    "split": "{% for m in messages %}{% for w in m.content.split('\n') %}{{ w }}{{ '|' if loop.last else '\n' }}"
    "{% endfor %}{% endfor %}",
    "tools": "{% for m in messages %}{% for t in m.tool_calls or [] %}{{ t }}{% endfor %}{{ m.content }}|{% endfor %}",
}
ONE, TWO = {"type": "text", "text": "one"}, {"type": "text", "text": "two", "cache_control": {}}


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_template_that_goes_through_parts_gets_parts(name: str) -> None:
    messages = [{"role": "user", "content": [ONE, TWO, "three"]}, {"role": "user", "content": "four"}]
    assert ours(IN_PARTS[name], messages) == "one|two|three|four|"
    assert ours(IN_PARTS[name], [USER, {"role": "assistant", "content": [ONE]}], go_on=True).endswith("|one")
    assert ours(IN_PARTS[name], [USER, {"role": "assistant", "content": "Sure "}], go_on=True).endswith("|Sure ")


@pytest.mark.parametrize("name", IN_ONE_TEXT)
def test_a_template_that_prints_a_text_gets_a_text(name: str) -> None:
    messages = [{"role": "user", "content": [ONE, TWO, "three"]}, {"role": "user", "content": "four"}]
    assert ours(IN_ONE_TEXT[name], messages) == "one\ntwo\nthree|four|"


def test_the_form_of_content_can_be_chosen() -> None:
    shown = "{{ messages[0].content | tojson }}"
    messages = [{"role": "user", "content": "four"}]
    assert [ours(shown, messages, form=form) for form in ("auto", "string")] == ['"four"', '"four"']
    assert ours(shown, messages, form="openai") == '[{"type": "text", "text": "four"}]'
    assert ours(IN_PARTS["asks"], [{"role": "user", "content": [ONE, TWO]}], form="string") == "one\ntwo|"
    with pytest.raises(InvalidRequestError, match="chat_template_content_format is 'json', allowed are auto, string"):
        ours(shown, messages, form="json")


DEVELOPER = {"role": "developer", "content": "Be brief."}
ONLY_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}S:{{ m.content }}"
KNOWS = ONLY_SYSTEM + "{% elif m.role == 'developer' %}D:{{ m.content }}"


@pytest.mark.parametrize(("template", "printed"), [(KNOWS, "D:Be brief."), (ONLY_SYSTEM, "S:Be brief.")])
def test_a_developer_is_the_system_where_the_template_does_not_know_better(template: str, printed: str) -> None:
    assert ours(template + "{% endif %}{% endfor %}", [DEVELOPER, USER]) == printed
    assert DEVELOPER["role"] == "developer", "what was sent is left as it was"


CALL = {"id": "1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "Zürich"}'}}
WITH_CALLS = "{% for c in messages[0].tool_calls %}{{ c.function.name }} {{ ARGUMENTS }}{% endfor %}"


@pytest.mark.parametrize("said", [{}, {"content": None}, {"content": ""}])
def test_an_assistant_that_only_calls_tools_says_nothing(said: dict[str, Any]) -> None:
    messages = [{"role": "assistant", "tool_calls": [CALL], **said}]
    assert ours("<{{ messages[0].content }}>", messages) == "<>"
    assert ours("<{{ messages[0]['content'] + '.' }}>", messages) == "<.>"
    assert ours("{% for p in messages[0].content %}{{ p.text }}{% endfor %}.", messages) == "."
    asks = "{% if messages[0].content is none %}{{ messages[0].tool_calls | length }}{% endif %}"
    compares = "{{ 'text' if messages[0]['content'] != none else 'calls' }}"
    assert (ours(asks, messages), ours(compares, messages)) == ("1", "calls")


def test_an_assistant_may_say_nothing_at_all_and_others_may_not() -> None:
    assert ours("<{{ messages[0].content }}>", [{"role": "assistant", "content": None}]) == "<>"
    with pytest.raises(InvalidRequestError, match=r"messages\[0\].content is None, allowed is text or parts"):
        ours("<{{ messages[0].content }}>", [{"role": "user", "content": None}])


@pytest.mark.parametrize(
    ("read", "printed"),
    [
        ("c.function.arguments | tojson", '{"zone": "Zürich"}'),
        ("c.function.arguments.zone", "Zürich"),
        ("c.function['arguments'].items() | list", "[('zone', 'Zürich')]"),
        ("c.function.arguments", '{"zone": "Zürich"}'),
        ("'(' + c.function.arguments + ')'", '({"zone": "Zürich"})'),
        ("c | tojson", '{"id": "1", "type": "function", "function": {"name": "now", "arguments": {"zone": "Zürich"}}}'),
    ],
)
@pytest.mark.parametrize("arguments", ['{"zone": "Zürich"}', {"zone": "Zürich"}])
def test_arguments_of_calls_are_as_the_template_reads_them(read: str, printed: str, arguments: Any) -> None:
    call = {**CALL, "function": {"name": "now", "arguments": arguments}}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    assert ours(WITH_CALLS.replace("ARGUMENTS", read), messages) == f"now {printed}"


@pytest.mark.parametrize("arguments", ["no JSON", "[1]", "7", pytest.param("[" * 100_000, id="deep")])
def test_arguments_that_are_no_object_stay_as_they_were_written(arguments: str) -> None:
    call = {**CALL, "function": {"name": "now", "arguments": arguments}}
    printed = ours("{{ messages[0].tool_calls[0] | tojson }}", [{"role": "assistant", "tool_calls": [call]}])
    assert json.loads(printed)["function"]["arguments"] == arguments


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
