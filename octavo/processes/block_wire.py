"""Wire: the messages and blocks of `block_messages.py` over a socket."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TypeVar

import msgspec

from octavo.kernels.block_mover import Bytes
from octavo.processes.block_messages import BadMessageError, ToBorrower, ToLender

#: bytes of a message; a prompt takes 4 for each token
MAX_MESSAGE_BYTES = 64 << 20
_LENGTH = struct.Struct("!I")

Message = TypeVar("Message")

_encode = msgspec.msgpack.Encoder().encode


class Wire:
    """Messages and blocks over a socket. One thread may send and another one receive. Whatever goes wrong is an OSError
    (EOFError at the end), or a BadMessageError."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def send(self, message: ToLender | ToBorrower) -> None:
        payload = _encode(message)
        self.end.sendall(_LENGTH.pack(len(payload)) + payload)

    def receive(self, decoder: msgspec.msgpack.Decoder[Message]) -> Message:
        (size,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if size > MAX_MESSAGE_BYTES:
            raise BadMessageError(f"a message of {size:,} bytes, allowed are {MAX_MESSAGE_BYTES:,}")
        try:
            return decoder.decode(self._exactly(size))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadMessageError(f"a message that is none: {error}") from None

    def send_blocks(self, data: Bytes) -> None:
        self.end.sendall(data.reshape(-1).data)

    def receive_blocks(self, into: Bytes) -> None:
        self._fill(into.reshape(-1).data)

    def send_memory(self, descriptor: int) -> None:
        socket.send_fds(self.end, [b"m"], [descriptor])

    def receive_memory(self) -> int:
        mark, descriptors, _, _ = socket.recv_fds(self.end, 1, 1)
        if mark != b"m" or len(descriptors) != 1:
            raise BadMessageError("the shared memory did not come")
        return descriptors[0]

    def close(self) -> None:
        """Wakes a thread that waits for the other end."""
        with suppress(OSError):
            self.end.shutdown(socket.SHUT_RDWR)
        self.end.close()

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        self._fill(memoryview(data))
        return data

    def _fill(self, view: memoryview) -> None:
        while view:
            count = self.end.recv_into(view)
            if not count:
                raise EOFError("the other engine closed the connection")
            view = view[count:]
