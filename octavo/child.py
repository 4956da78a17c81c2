"""A child process of the server: how it starts, talks to its parent, and ends with it.

    parent                                      child
      stdin pipe ── the task, pickled ──▶         begin()
          "      ── open while the parent lives;  at end of file the child exits at once
      channel   ◀──── notes, either way ────▶     a socket pair; end of file tells the parent that the child is gone

This needs no process-tracking feature of the operating system: end of file works everywhere.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from octavo import errors
from octavo.errors import OctavoError

#: signals that terminals and supervisors send to a whole group; only the parent handles them
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


NoteKind = Literal[
    "ready", "failed", "alive", "cleared", "suspects", "engine_up", "engine_down", "front_end_gone", "drain", "stop"
]


class Note(msgspec.Struct, omit_defaults=True):
    """One line on a channel.

    ready: the child serves (from the engine: with its start-up card). failed: it cannot start; text is the message and
        error the class from errors.py.
    alive: the child's loop runs and sends the next note within `seconds` (heartbeat.py); ready implies it.
    cleared: from the engine: a request that an earlier engine died on has been computed; text is its fingerprint.
    suspects: to an engine: another has died; num_deaths are those of its last requests, by fingerprint.
    engine_up, engine_down: to a front end: the number of an engine and its address; or why it is down, and the
        fingerprints of requests that it died on too often.
    front_end_gone: to the engine: the front end whose requests to abort.
    drain: to a front end: take no new requests, let running ones finish within `seconds`, exit. stop: exit now.
    """

    kind: NoteKind
    text: str = ""
    error: str = ""
    seconds: float = 0.0
    card: list[tuple[str, str]] = []
    engine: int = 0
    fingerprints: list[str] = []
    num_deaths: dict[str, int] = {}


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


class Channel:
    """One end of a socket pair that carries notes, one JSON object per line. Receiving never blocks."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._end.setblocking(False)
        self._rest = b""
        self._decoder = msgspec.json.Decoder(Note)
        self.is_open = True

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, note: Note) -> None:
        """Send a note. If the other end is gone, is_open becomes False."""
        self._end.setblocking(True)
        try:
            self._end.sendall(msgspec.json.encode(note) + b"\n")
        except OSError:
            self.is_open = False
        finally:
            self._end.setblocking(False)

    def offer(self, note: Note) -> None:
        """Send a short note if that does not block; otherwise drop it."""
        look = select.poll()
        look.register(self._end, select.POLLOUT)
        if look.poll(0):
            self.send(note)

    def receive(self) -> list[Note]:
        """All complete notes received. If the other end is gone, is_open becomes False."""
        while True:
            try:
                chunk = self._end.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self.is_open = False
                break
            self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return [self._decoder.decode(line) for line in lines]

    def close(self) -> None:
        self._end.close()


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
        # The child imports from the same places as this process.
        code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {function}; {function}()"
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
