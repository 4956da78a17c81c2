"""Runs chat templates in child processes: an endless or memory-hungry one ends only its own process.

    apply_chat_template ──▶ TemplateProcesses ──▶ an idle process, or a new one ──▶ text
                                                     └── over a limit: it is killed, and the request gets an error

A process starts on first use, about as fast as importing the template library here, and is kept. The round trip of a
normal template takes a fraction of a millisecond.
"""

from __future__ import annotations

import atexit
import contextlib
import marshal
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from octavo.errors import InvalidRequestError, TokenizerError
from octavo.shown import shown

#: limits of one rendering, since a template may never end: CPU seconds (the longest conversations take a tenth), and
#: wall-clock seconds, for a busy machine
MAX_CPU_S = 1.0
MAX_WALL_S = 20.0
#: the number of idle processes kept
_MAX_IDLE = 2
#: bytes; a process is not kept after a larger job, since its memory has grown
_LARGE_JOB = 2**22
_PIPE_BYTES = 2**16

_CODE = "import sys; sys.path[:] = {path!r}; from octavo.text.chat_template import main; main({max_cpu_s!r})"


@lru_cache(maxsize=1)
def template_processes() -> TemplateProcesses:
    """This process's only instance."""
    processes = TemplateProcesses()
    atexit.register(processes.close)
    return processes


class TemplateProcesses:
    """Owns the child processes. Any thread may call; each call gets a process to itself."""

    def __init__(self, max_cpu_s: float = MAX_CPU_S) -> None:
        """max_cpu_s: CPU seconds per conversation."""
        self._max_cpu_s = max_cpu_s
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._owner = os.getpid()

    def render(self, **arguments: Any) -> str:
        """chat_template.render in a child process. Raises InvalidRequestError and TokenizerError."""
        return self._do("render", arguments)

    def check(self, template: str) -> None:
        """Raises TokenizerError unless the text is a template."""
        self._do("compile", {"template": template})

    def warm(self) -> None:
        """Start a process ahead of the first request, unless one is idle."""
        if not self._idle:
            self._put(_Process(self._max_cpu_s), is_kept=True)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()

    def _do(self, what: str, arguments: dict[str, Any]) -> str:
        job = _packed((what, arguments))
        process = self._take()
        try:
            kind, answer = process.ask(job)
        except BaseException:
            process.kill()
            raise
        self._put(process, is_kept=len(job) < _LARGE_JOB)
        text = answer.decode("utf-8", "surrogatepass")
        if kind:
            raise InvalidRequestError(text) if kind == 1 else TokenizerError(text)
        return text

    def _take(self) -> _Process:
        with self._lock:
            if self._owner != os.getpid():  # after a fork: the pipes belong to the parent
                self._idle, self._owner = [], os.getpid()
            while self._idle:
                process = self._idle.pop()
                if process.is_alive():
                    return process
        return _Process(self._max_cpu_s)

    def _put(self, process: _Process, is_kept: bool) -> None:
        with self._lock:
            if is_kept and len(self._idle) < _MAX_IDLE:
                self._idle.append(process)
                return
        process.close()


class _Process:
    """One child process, used by one thread at a time."""

    def __init__(self, max_cpu_s: float) -> None:
        self._max_cpu_s = max_cpu_s
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(path=sys.path, max_cpu_s=max_cpu_s), "octavo: chat templates"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # keeps the terminal's signals away from it
        )
        self._pipes = [pipe for pipe in (self._process.stdin, self._process.stdout) if pipe is not None]
        self._to, self._from = (pipe.fileno() for pipe in self._pipes)
        os.set_blocking(self._to, False)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, job: bytes) -> tuple[int, bytes]:
        """Raises InvalidRequestError if the process dies."""
        until = time.monotonic() + MAX_WALL_S
        try:
            self._write(struct.pack("!Q", len(job)) + job, until)
            size, kind = struct.unpack("!QB", self._read(9, until))
            return kind, self._read(size, until)
        except (EOFError, BrokenPipeError):
            self._raise_end()

    def close(self) -> None:
        """The process exits when its input is closed."""
        for pipe in self._pipes:
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
            return
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes:
            pipe.close()

    def _write(self, data: bytes, until: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._to, select.POLLOUT, until)
            view = view[os.write(self._to, view[:_PIPE_BYTES]) :]

    def _read(self, size: int, until: float) -> bytes:
        parts: list[bytes] = []
        while size:
            self._wait(self._from, select.POLLIN, until)
            part = os.read(self._from, min(size, 2**20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self, descriptor: int, event: int, until: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise _took_too_long(f"{MAX_WALL_S:g} s")

    def _raise_end(self) -> NoReturn:
        """Raise the error that says why the process ended."""
        code = self._process.wait()
        if code == -signal.SIGPROF:
            raise _took_too_long(f"{self._max_cpu_s:g} s of CPU time")
        if code == -signal.SIGKILL:
            raise InvalidRequestError("the system killed the chat template, probably for using too much memory")
        raise InvalidRequestError(
            f"the chat template crashed its process (exit code {code}), probably because it nests too deeply; "
            "use another template"
        )


def _took_too_long(time_taken: str) -> InvalidRequestError:
    why = f"the chat template did not end within {time_taken}, the limit for one conversation"
    return InvalidRequestError(f"{why}; use another template, or send less")


def _packed(job: Any) -> bytes:
    try:
        return marshal.dumps(job)
    except ValueError:  # a value that is not plain, or is nested too deeply
        try:
            return marshal.dumps(_plain(job))
        except InvalidRequestError:
            raise
        except (RecursionError, ValueError):
            raise InvalidRequestError(
                "the messages or the template's variables are nested too deeply, allowed are a few hundred levels"
            ) from None


def _plain(value: Any) -> Any:
    """The value in plain Python types."""
    if value is None or isinstance(value, (bool, bytes)):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (Sequence, set, frozenset)):
        return [_plain(one) for one in value]
    raise InvalidRequestError(
        f"the messages or the template's variables hold {shown(value)}, allowed are texts, numbers, lists and objects"
    )


def _plain_key(key: Any) -> Any:
    """Tuples stay tuples, since a list cannot be a key."""
    return tuple(map(_plain_key, key)) if isinstance(key, (tuple, frozenset)) else _plain(key)
