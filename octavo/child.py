"""A child process of the server: how it is started, how it and its parent talk, and why it never outlives it.

    parent                                      child
      stdin pipe ── what to do, pickled ──▶       begin()
          "      ── open while the parent lives;  at its end the child exits, whatever it is doing
      channel   ◀──── notes, either way ────▶     a socket pair; its end tells the parent that the child is gone

Nothing here depends on the operating system's ways of following a process: an end of file is seen at once, everywhere.
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
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from octavo import errors
from octavo.errors import OctavoError

#: what the terminal and process supervisors send to a whole group; the parent alone decides what follows
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Note(msgspec.Struct, omit_defaults=True):
    """One line on a channel.

    ready: a child serves (from the engine: with its start-up card). failed: it cannot start; text is the message and
        error the class from errors.py.
    alive: its loop turns, and will say so again within so many seconds (heartbeat.py); ready says that too.
    cleared: from the engine: a request that an engine before it died at has been computed; text is its fingerprint.
    engine_up, engine_down: to a front end: where the engine listens; why it does not, and the fingerprints of requests
        that it died at too often.
    front_end_gone: to the engine: whose requests nobody waits for.
    drain: to a front end: take no new requests, let those running go on for so many seconds, end. stop: end now.
    """

    kind: Literal["ready", "failed", "alive", "cleared", "engine_up", "engine_down", "front_end_gone", "drain", "stop"]
    text: str = ""
    error: str = ""
    seconds: float = 0.0
    card: list[tuple[str, str]] = []
    fingerprints: list[str] = []


@contextlib.contextmanager
def telling_failures(channel: Channel) -> Iterator[None]:
    """An error inside ends the process, and its parent is told why. One of ours needs no traceback."""
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
    """One end of a socket pair that carries notes, one JSON object a line. Never blocks to receive."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._end.setblocking(False)
        self._rest = b""
        self._decoder = msgspec.json.Decoder(Note)
        self.is_open = True

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, note: Note) -> None:
        """The other end may be gone: its own end of file says so, to whoever receives."""
        self._end.setblocking(True)
        try:
            self._end.sendall(msgspec.json.encode(note) + b"\n")
        except OSError:
            self.is_open = False
        finally:
            self._end.setblocking(False)

    def offer(self, note: Note) -> None:
        """Send a short note if it need not wait for the other end to read; else drop it."""
        look = select.poll()
        look.register(self._end, select.POLLOUT)
        if look.poll(0):
            self.send(note)

    def receive(self) -> list[Note]:
        """Every whole note that has come. After the other end is gone: is_open is False."""
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

    def __init__(self, name: str, target: str, task: Any, inherited: Sequence[int] = ()) -> None:
        """target: "module:function", which calls `begin` first. task: what `begin` returns there. inherited: file
        descriptors that it gets under the same numbers."""
        self.name = name
        ours, theirs = socket.socketpair()
        module, function = target.split(":")
        # The child imports from where this process does, whatever directory either was started in.
        code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {function}; {function}()"
        with theirs:
            old = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)  # until the child ignores them
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", code, f"octavo: {name}"],
                    stdin=subprocess.PIPE,
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
            pass  # it ended already, which the channel will say

    def kill(self) -> None:
        self.process.kill()

    def reap(self, patience: float) -> str:
        """Collect a child whose channel has ended -> how it ended. It is killed if it lingers."""
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
    """In the child: its task and its channel. From here on it ends with its parent, and so does the task's
    `run_directory`, if it has one."""
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
            os._exit(1)  # the parent is gone before it could say what to do
        data += chunk
    return data


def _end_with_parent(run_directory: str | None) -> None:
    """The parent never writes again: what ends this read is the parent's end, and then it cleans nothing up."""
    os.read(0, 1)
    if run_directory is not None:
        shutil.rmtree(run_directory, ignore_errors=True)
    os._exit(1)


def as_error(failure: Note | None, otherwise: str) -> OctavoError:
    """What a child said of its end, as the error that it was there."""
    if failure is None:
        return errors.EngineDeadError(otherwise)
    kind = getattr(errors, failure.error, OctavoError)
    return kind(failure.text) if issubclass(kind, OctavoError) else OctavoError(failure.text)
