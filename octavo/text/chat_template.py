"""Chat templates: renders a list of messages as the text that a model was trained on.

A template is a Jinja program that comes with the model, so it runs in a sandbox. It expects Hugging Face's
environment: trimmed blocks, `raise_exception`, `strftime_now`, a `tojson` that keeps Unicode, loop controls, and
a `generation` block around the assistant's text, which is plain text here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn, get_args

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.config import ContentFormat
from octavo.errors import InvalidRequestError, TokenizerError
from octavo.text.chat_messages import Message, append_text, messages_for_template
from octavo.text.template_facts import TemplateFacts, template_facts

_END_MARK = "<|end of the message to continue|> "  # appended to the content, then cut off with all text after it


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    variables: Mapping[str, Any],
    content_format: ContentFormat = "auto",
) -> str:
    """Render a conversation. With continue_final_message the text ends where the last message's content ends.
    content_format: whether contents are passed as texts or as parts (openai); auto: as the template reads them."""
    if content_format not in get_args(ContentFormat):
        raise InvalidRequestError(
            f"chat_template_content_format is {content_format!r}, allowed are {', '.join(get_args(ContentFormat))}"
        )
    if add_generation_prompt and continue_final_message:
        raise InvalidRequestError(
            "add_generation_prompt and continue_final_message are both true; a new message cannot begin before "
            "the last one is finished: set one of them to false"
        )
    program = _compile(template)
    plain = messages_for_template(_facts(template), messages, content_format)
    if continue_final_message:
        append_text(plain[-1], _END_MARK)
    try:
        text = program.render(**{**variables, "messages": plain, "add_generation_prompt": add_generation_prompt})
    except SecurityError as error:
        raise TokenizerError(f"the chat template does something that its sandbox forbids: {error}") from error
    except RecursionError as error:
        raise InvalidRequestError(
            "the chat template, or its output, is nested too deeply; use another template"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a template is an untrusted program and may raise anything
        raise InvalidRequestError(f"the model's chat template refuses these messages: {error}") from error
    return _cut_at_mark(text) if continue_final_message else text


def check(template: str) -> None:
    """Raises TokenizerError unless the text is a Jinja template."""
    _compile(template)


def _cut_at_mark(text: str) -> str:
    """Cut the text where the last message's content ends. The mark ends in a space: if the template trimmed it,
    it would also have trimmed white space before the mark."""
    at = text.rfind(_END_MARK.rstrip())
    if at < 0:
        raise InvalidRequestError(
            "continue_final_message is true, but the chat template does not print the last message's content, "
            "so there is no place to continue from"
        )
    before = text[:at].replace(_END_MARK, "")
    return before if text.startswith(_END_MARK, at) else before.rstrip()


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    try:
        return _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"the chat template is broken at line {error.lineno}: {error.message}") from error
    except (SyntaxError, RecursionError, MemoryError, OverflowError) as error:  # from Python's compiler
        raise TokenizerError(
            f"the chat template nests too deeply for Python ({type(error).__name__}); use a flatter one"
        ) from error


@lru_cache(maxsize=32)
def _facts(template: str) -> TemplateFacts:
    try:
        return template_facts(_environment().parse(template))
    except RecursionError as error:
        raise TokenizerError("the chat template is nested too deeply to be read; use a flatter one") from error


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment


class _GenerationBlock(Extension):
    """{% generation %} ... {% endgeneration %} renders its body."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
