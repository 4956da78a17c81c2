"""Where engines meet to hand each other KV blocks: an address, the proof of a shared secret, and shared memory.

    unix:/run/octavo-x/blocks-1     on one machine, behind one supervisor: blocks travel in memory that both map
    10.0.0.7:14579                  between machines: they travel through the connection

Either side proves that it knows the secret before it reads a message (HMAC, as in multiprocessing.connection). Nothing
is encrypted, so the network must be one that one trusts.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

import numpy as np

from octavo.errors import ConfigError
from octavo.executor.door import tune
from octavo.executor.remote import limit_waits
from octavo.kernels.block_mover import BlockMover, Bytes
from octavo.processes.block_messages import BadMessageError
from octavo.processes.household import UNIX
from octavo.server_config import host_and_port

_PROOF_S = 5.0  # how long one that has connected may take to prove itself
_SEND_S = 30  # how long one may not read what was sent


def listen(address: str) -> socket.socket:
    """Raises ConfigError if somebody else listens there."""
    try:
        if address.startswith(UNIX):
            path = address.removeprefix(UNIX)
            with suppress(FileNotFoundError):
                os.unlink(path)  # an engine that died has left it
            end = socket.socket(socket.AF_UNIX)
            end.bind(path)
            end.listen()
            return end
        host, port = host_and_port("kv_listen", address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"no engine can connect at kv_listen {address!r}: {error}; choose another address") from None


def admit(end: socket.socket, secret: bytes) -> bool:
    """One that has connected: whether it knows the secret."""
    tune(end)
    return _prove(end, secret, deliver_challenge, answer_challenge)


def knock(address: str, secret: bytes) -> socket.socket:
    """Connect. Raises OSError, and PermissionError if the secrets differ."""
    if address.startswith(UNIX):
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(_PROOF_S)
        end.connect(address.removeprefix(UNIX))
    else:
        end = socket.create_connection(host_and_port("kv_peer", address), _PROOF_S)
    tune(end)
    if not _prove(end, secret, answer_challenge, deliver_challenge):
        end.close()
        raise PermissionError("it does not know the secret: set OCTAVO_KV_SECRET to the same text on both")
    return end


def _prove(end: socket.socket, secret: bytes, *steps: Callable[[Connection, bytes], None]) -> bool:
    connection = Connection(os.dup(end.fileno()))
    try:
        limit_waits(connection, _PROOF_S)
        for step in steps:
            step(connection, secret)
        limit_waits(connection, 0)
    except (AuthenticationError, AssertionError, EOFError, OSError, ValueError):
        return False
    finally:
        connection.close()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_S, 0))
    return True


class Slots:
    """Memory for blocks that travel, in slots of equal size. descriptor: of memory that another process may map."""

    def __init__(self, num_slots: int, slot_size: int, mover: BlockMover, descriptor: int | None = None) -> None:
        self.num_slots, self.slot_size, self.descriptor = num_slots, slot_size, descriptor
        self.blocks_per_slot = slot_size // mover.block_bytes
        self._block_bytes = mover.block_bytes
        size = num_slots * slot_size
        if descriptor is None:
            self._memory: Bytes = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        else:
            self._memory = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
        self._unpin = mover.pin(self._memory)

    @classmethod
    def shared(cls, num_slots: int, slot_size: int, mover: BlockMover) -> Slots:
        """New memory, which nobody can shrink while another process reads it."""
        descriptor = os.memfd_create("octavo-blocks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, num_slots * slot_size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return cls(num_slots, slot_size, mover, descriptor)

    @classmethod
    def of_another(cls, num_slots: int, slot_size: int, mover: BlockMover, descriptor: int) -> Slots:
        """Another process's. Raises BadMessageError unless it is as large as was said, and stays so."""
        try:
            is_sealed = bool(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
        except OSError:
            is_sealed = False
        if not is_sealed or os.fstat(descriptor).st_size < num_slots * slot_size:
            os.close(descriptor)
            raise BadMessageError("the shared memory is smaller than was said, or can be made smaller")
        return cls(num_slots, slot_size, mover, descriptor)

    def blocks(self, slot: int, count: int) -> Bytes:
        """[count, block_bytes]: the first blocks of a slot."""
        begin = slot * self.slot_size
        return self._memory[begin : begin + count * self._block_bytes].reshape(count, self._block_bytes)

    def close(self) -> None:
        """The memory itself goes when nothing refers to it."""
        self._unpin()
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
