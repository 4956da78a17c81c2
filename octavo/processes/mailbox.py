"""Mailbox: work that other threads leave for the engine's thread, which may be asleep on its sockets."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress


class Mailbox:
    """fileno: readable when there is work."""

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._bell, self._ringer = socket.socketpair()
        for end in (self._bell, self._ringer):
            end.setblocking(False)

    def fileno(self) -> int:
        return self._bell.fileno()

    def post(self, work: Callable[[], None]) -> None:
        """From any thread."""
        self._work.append(work)
        with suppress(OSError):  # full: it is readable already; closed: nobody works any more
            self._ringer.send(b"!")

    def do_all(self) -> None:
        """On the owner's thread: all work that is there."""
        if not self._work:
            return
        with suppress(BlockingIOError):
            while self._bell.recv(4096):
                pass
        while self._work:
            self._work.popleft()()

    def close(self) -> None:
        self._bell.close()
        self._ringer.close()
