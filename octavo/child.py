"""A child process of the server: how it starts, talks to its parent, and ends with it.

    parent                                      child
      stdin pipe ── the task, pickled ──▶         begin()
          "      ── open while the parent lives;  at end of file the child exits at once
      channel   ◀──── notes, either way ────▶     a socket pair; end of file tells the parent that the child is gone

This needs no process-tracking feature of the operating system: end of file works everywhere.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from octavo import errors
from octavo.channel import Channel, Note
from octavo.errors import OctavoError

#: signals that terminals and supervisors send to a whole group; only the parent handles them
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: between collections of garbage while a process loads; torch makes a million
_NEW_OBJECTS = 100_000


@contextlib.contextmanager
def telling_failures(channel: Channel) -> Iterator[None]:
    """On an error, tell the parent and exit. Octavo's own errors print no traceback."""
    try:
        yield
    except OctavoError as error:
        channel.send(Note("failed", text=str(error), error=type(error).__name__))
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        channel.send(Note("failed", text=f"{type(error).__name__}: {error}", error="OctavoError"))
        sys.exit(1)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """While a process imports and loads what stays. The garbage collector runs rarely, and does not visit it later:
    each collection would take tenths of a second where torch is loaded, and so would several when the process ends."""
    before = gc.get_threshold()
    gc.set_threshold(_NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
    gc.collect()
    gc.freeze()


class Child:
    """A running child, as its parent sees it."""

    def __init__(
        self,
        name: str,
        target: str,
        task: Any,
        inherited: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        *,
        is_one_of_many: bool = False,
    ) -> None:
        """target: "module:function", which calls `begin` first. task: returned by `begin`. inherited: file descriptors,
        kept under the same numbers. environment: variables that differ from this process's. is_one_of_many: its
        standard error is a pipe, which the parent reads, and it has a process group of its own: if it is stopped when
        its parent dies, the system wakes it, and it ends."""
        self.name = name
        ours, theirs = socket.socketpair()
        module, function = target.split(":")
        # The child imports from the same places as this process. What it imports stays, and the garbage collector would
        # visit it again and again, for a sixth of the start's time.
        code = (
            f"import gc, sys; gc.disable(); sys.path[:] = {sys.path!r}; from {module} import {function}; "
            f"gc.freeze(); gc.enable(); {function}()"
        )
        with theirs:
            old = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)  # until the child ignores them
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", code, f"octavo: {name}"],
                    stdin=subprocess.PIPE,
                    stderr=subprocess.PIPE if is_one_of_many else None,
                    process_group=0 if is_one_of_many else None,
                    env={**os.environ, **environment} if environment else None,
                    pass_fds=(theirs.fileno(), *inherited),
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, old)
            self._hand_over(pickle.dumps((theirs.fileno(), task)))
        self.channel = Channel(ours)

    def _hand_over(self, payload: bytes) -> None:
        assert self.process.stdin is not None, "it was opened as a pipe"
        try:
            self.process.stdin.write(struct.pack("!Q", len(payload)) + payload)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has exited; the channel's end of file shows it

    def kill(self) -> None:
        self.process.kill()

    def is_stopped(self) -> bool:
        """Whether a signal has stopped the process, where the system tells."""
        with contextlib.suppress(OSError), open(f"/proc/{self.process.pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "T"
        return False

    def reap(self, patience: float) -> str:
        """Wait for a child whose channel has ended, kill it after `patience` seconds, and say how it ended."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        assert self.process.stdin is not None, "it was opened as a pipe"
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.channel.close()
        if code >= 0:
            return f"exit code {code}"
        return f"signal {-code} ({signal.Signals(-code).name})"


def begin() -> tuple[Any, Channel]:
    """In the child: its task and its channel. From here on the child exits with its parent and removes the task's
    `run_directory`, if any."""
    for number in _PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENTS_SIGNALS)
    (size,) = struct.unpack("!Q", _read_exactly(8))
    descriptor, task = pickle.loads(_read_exactly(size))
    threading.Thread(target=_end_with_parent, args=(task.run_directory,), name="lifeline", daemon=True).start()
    return task, Channel(socket.socket(fileno=descriptor))


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            os._exit(1)  # the parent died before it sent the task
        data += chunk
    return data


def _end_with_parent(run_directory: str | None) -> None:
    """The parent never writes again, so this read returns when the parent dies, without cleaning up."""
    os.read(0, 1)
    if run_directory is not None:
        shutil.rmtree(run_directory, ignore_errors=True)
    os._exit(1)


def as_error(failure: Note | None, otherwise: str) -> OctavoError:
    """A child's `failed` note as the exception that it reported."""
    if failure is None:
        return errors.EngineDeadError(otherwise)
    kind = getattr(errors, failure.error, OctavoError)
    return kind(failure.text) if issubclass(kind, OctavoError) else OctavoError(failure.text)
