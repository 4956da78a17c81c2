"""Which formats a model writes: found in its chat template, or named by options."""

from __future__ import annotations

import pytest

from octavo.errors import ConfigError
from octavo.text.answers.style import answer_style, named_call_parsers
from tests.text.written_calls import WRITERS

TEMPLATES = {
    "openai": "<|channel|>analysis ... namespace functions {{ tools }}",
    "deepseek_v3": "{{ tools }}<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + '\\n```json\\n'",
    "deepseek_v31": "{{ tools }}<｜tool▁call▁begin｜>'+ name + '<｜tool▁sep｜>'",
    "kimi_k2": "{{ tools }}<|tool_calls_section_begin|><|tool_call_begin|>",
    "minimax_m2": "{{ tools }}<minimax:tool_call><invoke name=",
    "glm45": "{{ tools }}<tool_call>{function-name}<arg_key>",
    "qwen3_coder": "{{ tools }}<tool_call>\n<function=example>\n<parameter=x>",
    "functiongemma": "{{ tools }}<start_function_call>call:",
    "gemma4": "{{ tools }}<|tool_call>call:",
    "mistral": "{{ tools }}[TOOL_CALLS]",
    "hermes": '{{ tools }}<tool_call>\n{"name": <function-name>',
    "granite": "{{ tools }}<|start_of_role|><|tool_call|>",
    "phi4_mini_json": "<|tool|>{{ tools }}<|/tool|>",
    "llama4_pythonic": "<|header_start|>{{ tools }}[func_name1(params_name1=",
    "llama3_json": '<|start_header_id|>{{ tools }}{"name": function name, "parameters":',
}


def test_the_format_is_found_in_the_template() -> None:
    for name, template in TEMPLATES.items():
        assert answer_style(template).calls == name
    assert answer_style("{{ messages }}").calls == "hermes"  # the template shows no tools, so the prompt does
    assert answer_style("{{ tools }}").calls is None
    assert answer_style(None).calls is None
    assert answer_style("{% if '</think>' in content %}").thoughts == "qwen3"
    assert answer_style(TEMPLATES["openai"]).thoughts == "openai_gptoss"
    assert answer_style("{{ messages }}").thoughts is None


def test_a_named_format_counts_before_the_templates() -> None:
    style = answer_style(TEMPLATES["hermes"], "mistral", "deepseek_r1")
    assert (style.calls, style.thoughts) == ("mistral", "deepseek_r1")
    assert answer_style(TEMPLATES["hermes"], "none", "none") == answer_style(None)
    with pytest.raises(ConfigError, match="tool_call_parser is 'herms', which is unknown; did you mean 'hermes'"):
        answer_style(None, "herms")
    with pytest.raises(ConfigError, match="reasoning_parser is 'x', which is unknown; allowed are"):
        answer_style(None, None, "x")
    assert set(WRITERS) == set(named_call_parsers())
