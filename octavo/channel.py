"""Channel: notes between a child process of the server and its parent, through a socket pair."""

from __future__ import annotations

import select
import socket
from typing import Literal

import msgspec

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
