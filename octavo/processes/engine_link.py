"""A front end's end of the socket to the engine's process. Neither sending nor receiving ever waits.

A message wakes the event loop once. However much there is to receive, after a few milliseconds the others of the loop
have their turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import zmq

from octavo.observe.logging import LOGGER
from octavo.processes.transport import READ_SIZE, Down, HasRead, Hello, Up, decode_down, encode

#: seconds of the event loop that the engine's news may take at a time
RECEIVE_S = 0.005


class EngineLink:
    """Owner of the socket. take: what is done with each message that comes."""

    def __init__(self, identity: str, take: Callable[[Down], None]) -> None:
        self._identity = identity
        self._take = take
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._num_read = 0  # bytes that the engine has not been told of
        self._goes_on = False  # with receiving, in the event loop's next turn

    def connect(self, address: str) -> None:
        """An engine listens there."""
        self._num_read = 0
        self._socket = _front_end_socket(self._context, address, self._identity.encode())
        asyncio.get_running_loop().add_reader(int(self._socket.FD), self._receive)
        self.send(Hello())

    def disconnect(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(int(self._socket.FD))
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self.disconnect()
        self._context.term()

    def send(self, message: Up) -> None:
        """Never waits. To an engine that is gone, nothing: whoever needs an answer is told by `disconnect`."""
        if self._socket is None:
            return
        self._socket.send(encode(message), zmq.NOBLOCK)
        # The descriptor tells of changes only, and sending may swallow one.
        if int(self._socket.EVENTS) & zmq.POLLIN:
            asyncio.get_running_loop().call_soon(self._receive)

    def _receive(self) -> None:
        """Everything that has come; after a while, the others of the loop first."""
        if self._goes_on:
            return
        until = time.monotonic() + RECEIVE_S
        while self._socket is not None:
            if time.monotonic() > until:
                self._goes_on = True
                asyncio.get_running_loop().call_soon(self._go_on)
                return
            try:
                payload = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._num_read += len(payload)
            if self._num_read >= READ_SIZE:
                self.send(HasRead(self._num_read))
                self._num_read = 0
            try:
                self._take(decode_down(payload))
            except Exception:  # whoever else has news in the socket must not wait for it for ever
                LOGGER.exception("a message of the engine was not understood")

    def _go_on(self) -> None:
        self._goes_on = False
        self._receive()


def _front_end_socket(context: zmq.Context[zmq.Socket[bytes]], address: str, identity: bytes) -> zmq.Socket[bytes]:
    """Nothing it sends waits or is lost while the engine lives."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IDENTITY, identity)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.connect(address)
    return socket
