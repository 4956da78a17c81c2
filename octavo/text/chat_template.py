"""Chat templates: renders a list of messages as the text that a model was trained on, in a child process.

A template is a Jinja program that comes with the model, so it runs in a sandbox. It expects Hugging Face's
environment: trimmed blocks, `raise_exception`, `strftime_now`, a `tojson` that keeps Unicode, loop controls, and
a `generation` block around the assistant's text, which is plain text here.

The child (see template_process.py) renders one conversation at a time, until its parent exits:

    stdin    size, then marshal of (what, arguments)          what: render, or compile, which only checks the syntax
    stdout   size, kind of answer, then text in UTF-8         kind: 0 the text; 1 the request's fault; 2 the template's

An operating-system timer kills it when a template uses too much CPU time, wherever it hangs.
"""

from __future__ import annotations

import json
import marshal
import os
import resource
import signal
import struct
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
from octavo.errors import InvalidRequestError, OctavoError, TokenizerError
from octavo.shown import cut
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


# The child process

#: for the whole process; the interpreter alone takes tens of megabytes
MAX_MEMORY_BYTES = 2**30
#: characters of rendered text
MAX_TEXT_LEN = 2**25
TEXT, REFUSED, BROKEN = 0, 1, 2
_MAX_MESSAGE_LEN = 1000


def main(max_cpu_s: float) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    while True:
        (size,) = struct.unpack("!Q", _read(8))
        job = _read(size)
        signal.setitimer(signal.ITIMER_PROF, max_cpu_s)  # its signal ends the process
        kind, answer = _answer(job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(struct.pack("!QB", len(answer), kind) + answer)


def _answer(job: bytes) -> tuple[int, bytes]:
    try:
        return TEXT, _carry_out(*marshal.loads(job)).encode("utf-8", "surrogatepass")
    except OctavoError as error:
        kind = REFUSED if isinstance(error, InvalidRequestError) else BROKEN
        return kind, _cut_message(str(error))
    except MemoryError:
        return REFUSED, b"the chat template needs more than a gigabyte for this conversation; use another template"
    except BaseException as error:  # an untrusted program may raise anything, in the compiler too
        return BROKEN, _cut_message(f"the chat template cannot be run: {type(error).__name__}: {error}")


def _cut_message(message: str) -> bytes:
    """A template's own message may be long."""
    return cut(message, _MAX_MESSAGE_LEN).encode("utf-8", "replace")


def _carry_out(what: str, arguments: dict[str, Any]) -> str:
    if what == "compile":
        check(**arguments)
        return ""
    text = render(**arguments)
    if len(text) > MAX_TEXT_LEN:
        raise InvalidRequestError(
            f"the chat template renders these messages to {len(text)} characters, allowed are {MAX_TEXT_LEN}; "
            "send fewer messages, or use another template"
        )
    return text


def _read(size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = os.read(0, min(size, 2**20))
        if not part:
            os._exit(0)  # the parent is gone
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(1, view) :]
        except BrokenPipeError:
            os._exit(0)
