"""A trace: requests as arrival times and lengths, without text. Recorded traces are files of JSON lines.

    {"arrival": 0.0, "prompt_len": 512, "output_len": 120}
    {"arrival": 0.4, "prompt_len": 300, "output_len": 80, "prefix": "system", "prefix_len": 256, "priority": 1}
    {"arrival": 1.0, "prompt_len": 90, "output_len": 50, "session": "s1"}
    {"prompt_len": 200, "output_len": 50, "session": "s1", "gap": 4.0}

A session is a conversation: the prompt of a turn begins with the prompt and the answer of the turn before, as far as it
reaches. A turn arrives at its `arrival`, but not before the last answer and `gap` seconds more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from octavo.errors import ConfigError
from octavo.shown import cut

MOST_REQUESTS = 20_000_000
_MOST_LINE = 64 << 10  # bytes
_EXAMPLE = '{"arrival": 0.5, "prompt_len": 100, "output_len": 20}'

_Len = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
_Time = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]


class TraceRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """arrival: seconds after the start; None: after its session's last turn. prompt_len, output_len: tokens; output_len
    is that of each of the n sequences. max_tokens: the limit that the engine knows, if the answer stops before it.
    prefix: the name of a beginning, prefix_len tokens long, that prompts share. gap: seconds to wait after the answer
    before. is_last: the last turn of its session."""

    arrival: _Time | None = None
    prompt_len: _Len
    output_len: _Len
    max_tokens: _Len | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    priority: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)] = 0
    prefix: str | None = None
    prefix_len: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    session: str | None = None
    gap: _Time = 0.0
    is_last: bool = True


def read_trace(path: str) -> list[TraceRequest]:
    """A file's requests by arrival; the turns of a session in the file's order. Raises ConfigError."""
    requests: list[TraceRequest] = []
    last_turns: dict[str, TraceRequest] = {}
    for where, line in _lines(path):
        request = _of_line(line, where)
        request.is_last = True
        if request.session is not None:
            before = last_turns.get(request.session)
            if before is not None:
                before.is_last = False
                request.arrival = max(request.arrival or 0.0, before.arrival or 0.0)
            last_turns[request.session] = request
        if request.arrival is None:
            raise ConfigError(f'{where} has no "arrival", which only later turns of a "session" may leave out')
        requests.append(request)
    if not requests:
        raise ConfigError(f"the trace {path} has no request; a line is like {_EXAMPLE}")
    requests.sort(key=lambda one: one.arrival or 0.0)
    return requests


def _lines(path: str) -> Iterator[tuple[str, bytes]]:
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_MOST_LINE + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(line) > _MOST_LINE:
                    raise ConfigError(f"{where} has more than {_MOST_LINE:,} bytes, the most of a request of a trace")
                if number > MOST_REQUESTS:
                    raise ConfigError(f"the trace {path} has more than {MOST_REQUESTS:,} lines, the most that are read")
                if line.strip():
                    yield where, line
    except (OSError, ValueError) as error:
        raise ConfigError(f"the trace {path} cannot be read: {error}") from None


def _of_line(line: bytes, where: str) -> TraceRequest:
    try:
        request = msgspec.json.decode(line, type=TraceRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: {error}: {cut(line.decode('utf-8', 'replace').strip(), 80)}") from None
    if request.prefix_len > request.prompt_len:
        raise ConfigError(
            f'{where} has "prefix_len" {request.prefix_len}, allowed is up to its "prompt_len", {request.prompt_len}'
        )
    if (request.prefix is None) != (request.prefix_len == 0):
        raise ConfigError(f'{where} has one of "prefix" and "prefix_len": give both, or none')
    if request.max_tokens is not None and request.max_tokens < request.output_len:
        raise ConfigError(
            f'{where} has "max_tokens" {request.max_tokens}, allowed is its "output_len", {request.output_len}, or more'
        )
    return request
