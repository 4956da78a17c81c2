"""Door: where ranks on other machines connect with the engine.

    engine                                   rank
      listens at its machine's address
      ◀──────────────── connect ───────────────    knock
      proves that it knows the secret, and so does the other     HMAC, as in multiprocessing.connection
      ◀──────────────── the rank's name ───────

Messages are pickles, so neither side reads one before the other has proved itself. The secret travels with the task.
Nothing is encrypted: like Ray's own connections and those of collectives, it is for a network that one trusts.
"""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

from octavo.executor.remote import limit_waits

_TURN_S = 1.0
_PROOF_S = 5.0  # how long one that has connected may take to prove itself
_LONGEST_NAME = 64
#: a machine that vanishes is noticed after 10 + 3 * 5 seconds, one that is only busy never
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    secret: bytes = field(repr=False)


class Door:
    def __init__(self, host: str) -> None:
        self._listener = socket.create_server((host, 0))
        self._listener.settimeout(_TURN_S)
        self.address = Address(host, self._listener.getsockname()[1], secrets.token_bytes(32))

    def admit(self) -> tuple[str, Connection] | None:
        """The next rank, by its name. None: within a second nobody came who knows the secret."""
        try:
            end, _ = self._listener.accept()
        except TimeoutError:
            return None
        tune(end)
        connection = Connection(end.detach())
        limit_waits(connection, _PROOF_S)
        try:
            deliver_challenge(connection, self.address.secret)
            answer_challenge(connection, self.address.secret)
            name = connection.recv_bytes(_LONGEST_NAME).decode()
        except (AuthenticationError, AssertionError, EOFError, OSError, UnicodeDecodeError):
            connection.close()
            return None
        limit_waits(connection, 0)
        return name, connection

    def close(self) -> None:
        self._listener.close()


def knock(address: Address, name: str) -> Connection:
    """Connect with the engine. Raises OSError if it cannot be reached from here."""
    end = socket.create_connection((address.host, address.port), _PROOF_S)
    tune(end)
    connection = Connection(end.detach())
    answer_challenge(connection, address.secret)
    deliver_challenge(connection, address.secret)
    connection.send_bytes(name.encode())
    return connection


def tune(end: socket.socket) -> None:
    """Over TCP: small messages leave at once, and a machine that is gone is noticed."""
    end.settimeout(None)
    if end.family == socket.AF_UNIX:
        return
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # Linux
            end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
