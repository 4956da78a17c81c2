"""Signals as bytes to read, so that whoever waits for many things waits for them too; they interrupt nothing."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def hearing_signals() -> Iterator[socket.socket]:
    """A socket on which each signal is a byte, its number. Others than SIGNALS may come: pass over them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for end in (ours, theirs):
            end.setblocking(False)
        old_fd = signal.set_wakeup_fd(theirs.fileno())
        old_handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        try:
            yield ours
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_fd)
