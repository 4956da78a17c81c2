"""The child process that renders chat templates, one conversation at a time, until its parent exits.

    stdin    size, then marshal of (what, arguments)          what: render, or compile, which only checks the syntax
    stdout   size, kind of answer, then text in UTF-8         kind: 0 the text; 1 the request's fault; 2 the template's

A timer of the operating system ends the process when a template uses too much CPU time, wherever it hangs.
"""

from __future__ import annotations

import marshal
import os
import resource
import signal
import struct
from typing import Any

from octavo.errors import InvalidRequestError, OctavoError
from octavo.shown import cut
from octavo.text.chat_template import check, render

#: for the whole process; the interpreter alone takes tens of megabytes
MAX_MEMORY_BYTES = 2**30
#: characters of rendered text
MAX_TEXT_LEN = 2**25
TEXT, REFUSED, BROKEN = 0, 1, 2
_MAX_MESSAGE_LEN = 1000


def main(max_cpu_s: float) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory()
    while True:
        (size,) = struct.unpack("!Q", _read(8))
        job = _read(size)
        signal.setitimer(signal.ITIMER_PROF, max_cpu_s)  # its signal ends the process
        kind, answer = _answer(job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(struct.pack("!QB", len(answer), kind) + answer)


def _limit_memory() -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


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
