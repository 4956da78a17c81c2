"""What the engine sends to front ends, and what becomes of one that does not read.

reads           each message at once
does not        MAX_UNREAD messages or MAX_UNREAD_SIZE bytes wait (transport.py); at the next one its requests are given
                up: nobody knows whether it will ever read, and they hold blocks
reads again     what waited, then which of its requests and questions have ended without a word: their clients are
                told, and none waits for ever
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import zmq

from octavo.observe.logging import LOGGER
from octavo.processes.transport import MAX_UNREAD_SIZE, Down, GivenUp, Refusal, Reply, StepNews, encode

#: how often somebody who did not read is tried again
RETRY_S = 0.1


class Outbox:
    """forget: ends all requests of a front end -> their keys."""

    def __init__(self, socket: zmq.Socket[bytes], forget: Callable[[bytes], Iterable[int]]) -> None:
        self._socket = socket
        self._forget = forget
        self._untold: dict[bytes, set[int]] = {}
        self._unread_size: dict[bytes, int] = {}
        self._retry_at = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until `retry` should be called though nothing happens. None: as late as it likes."""
        return RETRY_S if self._untold else None

    def send(self, front_end: bytes, message: Down) -> None:
        """Never waits."""
        payload = encode(message)
        unread_size = self._unread_size.get(front_end, 0)
        try:
            if unread_size > MAX_UNREAD_SIZE:
                raise zmq.Again
            self._socket.send_multipart((front_end, payload), zmq.NOBLOCK)
            self._unread_size[front_end] = unread_size + len(payload)
        except zmq.Again:
            self._give_up(front_end, message)
        except zmq.ZMQError as error:
            LOGGER.info("front end %s is gone (%s): its requests are aborted", front_end.decode(), error)
            self._forget(front_end)

    def was_read(self, front_end: bytes, num_bytes: int) -> None:
        """A front end has read so much more."""
        self._unread_size[front_end] = max(0, self._unread_size.get(front_end, 0) - num_bytes)

    def retry(self) -> None:
        """Tell those who did not read, if they do now, what they missed."""
        if not self._untold or (now := time.monotonic()) < self._retry_at:
            return
        self._retry_at = now + RETRY_S
        for front_end, keys in list(self._untold.items()):
            try:
                self._socket.send_multipart((front_end, encode(GivenUp(sorted(keys)))), zmq.NOBLOCK)
            except zmq.Again:
                continue
            except zmq.ZMQError:
                pass  # it is gone
            del self._untold[front_end]

    def front_end_gone(self, front_end: bytes) -> None:
        self._unread_size.pop(front_end, None)
        self._untold.pop(front_end, None)

    def _give_up(self, front_end: bytes, message: Down) -> None:
        """This message is lost, and so is whatever would come after it."""
        if front_end not in self._untold:
            LOGGER.warning("front end %s does not read: its requests are aborted", front_end.decode())
        untold = self._untold.setdefault(front_end, set())
        match message:
            case StepNews():
                untold.update(message.keys, [news.key for news in message.others])
            case Refusal(key) | Reply(key):
                untold.add(key)
        untold.update(self._forget(front_end))
