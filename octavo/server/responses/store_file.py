"""ResponseFile: responses in SQLite, in memory or in a file, bounded in number, bytes and age.

    a ◀── b ◀── c        each response names the one that it continues
          └──── d

Reading a response, or continuing it, is a use of the whole line behind it. When there is no room, the response that was
unused the longest goes first. In a line that is used together the last counts as the oldest, so that none loses the
beginning of its conversation.

Each response has an owner, the key of the client that made it; no other finds it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from octavo.errors import ConfigError

#: "octR": what SQLite's file says about whose it is
_APPLICATION, _VERSION = 0x6F637452, 1
_MARKS = ("application_id", "user_version")
#: what a failing file raises; messages about a damaged one may be no UTF-8
FileFault = (sqlite3.Error, UnicodeDecodeError)
_BUSY_S = 5.0
#: responses of a conversation that are followed back
_MAX_LINE = 4096
_TABLE = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, previous TEXT, input BLOB NOT NULL, body BLOB NOT NULL, events BLOB,
    size INTEGER NOT NULL, used REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON responses (used, size);
CREATE TABLE IF NOT EXISTS dropped (reason TEXT PRIMARY KEY, num INTEGER NOT NULL);
INSERT OR IGNORE INTO dropped VALUES ('room', 0), ('age', 0)
"""
_LINE = """
WITH RECURSIVE line (id, previous, size, place) AS (
    SELECT id, previous, size, 0 FROM responses WHERE id = ? AND owner = ?
    UNION ALL
    SELECT one.id, one.previous, one.size, place + 1 FROM responses AS one JOIN line ON one.id = line.previous
    WHERE one.owner = ? AND place < ?
) SELECT id, previous, size FROM line ORDER BY place
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptResponse:
    """owner: of whose key; "" where the server has none. previous: the id of the response that it continues. input,
    body: JSON, the items of its request and the response itself. events: those of its stream, to be sent again."""

    id: str
    owner: str
    previous: str | None
    input: bytes
    body: bytes
    events: bytes | None = None

    @property
    def size(self) -> int:
        return len(self.input) + len(self.body) + len(self.events or b"")


class ResponseFile:
    """One thread at a time calls it. Raises one of FileFault if the file fails."""

    def __init__(
        self,
        path: str | None,
        *,
        max_num: int,
        max_bytes: int,
        timeout_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """path: None for memory. Raises ConfigError if it is no such file."""
        self._max_num, self._max_bytes, self._timeout_s, self._clock = max_num, max_bytes, timeout_s, clock
        self._connection = _connect(path)

    def add(self, response: KeptResponse) -> list[str]:
        """-> the ids of those that were dropped to make room; the response itself, if its own line leaves none."""
        fields = (response.id, response.owner, response.previous, response.input, response.body, response.events)
        with self._writing():
            now = self._clock()
            self._connection.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*fields, response.size, now)
            )
            self._use(response.owner, response.id, now)
            return self._make_room(now)

    def get(self, owner: str, response_id: str) -> KeptResponse | None:
        with self._writing():
            self._drop_old(self._clock())
            self._use(owner, response_id, self._clock())
        return self._read(owner, response_id)

    def line(self, owner: str, response_id: str, max_bytes: int) -> list[KeptResponse]:
        """A response and those that it continues, the oldest first. Raises BrokenLineError."""
        with self._writing():
            self._drop_old(self._clock())
            ids = self._use(owner, response_id, self._clock())
        if not ids:
            raise BrokenLineError(response_id, None)
        if sum(size for _, _, size in ids) > max_bytes:
            raise TooLongLineError(sum(size for _, _, size in ids))
        found = [self._read(owner, one) for one, _, _ in reversed(ids)]
        first = ids[-1][1]
        if first is not None or None in found:
            raise BrokenLineError(response_id, first)
        return [one for one in found if one is not None]

    def remove(self, owner: str, response_id: str) -> bool:
        """False: there is no such response."""
        with self._writing():
            asked = "DELETE FROM responses WHERE id = ? AND owner = ?"
            return self._connection.execute(asked, (response_id, owner)).rowcount > 0

    def num_and_bytes(self) -> tuple[int, int]:
        num, size = self._connection.execute("SELECT COUNT(*), TOTAL(size) FROM responses").fetchone()
        return num, int(size)

    def num_dropped(self) -> dict[str, int]:
        """By reason, since the file was made, by all its servers."""
        return dict(self._connection.execute("SELECT reason, num FROM dropped").fetchall())

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """All of it is done, or nothing."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()

    def _read(self, owner: str, response_id: str) -> KeptResponse | None:
        asked = "SELECT id, owner, previous, input, body, events FROM responses WHERE id = ? AND owner = ?"
        row = self._connection.execute(asked, (response_id, owner)).fetchone()
        names = ("id", "owner", "previous", "input", "body", "events")
        return None if row is None else KeptResponse(**dict(zip(names, row, strict=True)))

    def _use(self, owner: str, response_id: str, now: float) -> Sequence[tuple[str, str | None, int]]:
        """-> id, previous and size of the response and those behind it, the newest first."""
        line = self._connection.execute(_LINE, (response_id, owner, owner, _MAX_LINE)).fetchall()
        uses = [(now + place * 1e-6, one) for place, (one, _, _) in enumerate(line)]
        self._connection.executemany("UPDATE responses SET used = ? WHERE id = ?", uses)
        return line

    def _drop_old(self, now: float) -> None:
        gone = self._connection.execute("DELETE FROM responses WHERE used < ?", (now - self._timeout_s,)).rowcount
        self._count_dropped("age", gone)

    def _make_room(self, now: float) -> list[str]:
        self._drop_old(now)
        num, size = self.num_and_bytes()
        gone: list[str] = []
        oldest = self._connection.execute("SELECT id, size FROM responses ORDER BY used")
        while num > self._max_num or size > self._max_bytes:
            response_id, its = oldest.fetchone()
            gone.append(response_id)
            num, size = num - 1, size - its
        oldest.close()
        self._connection.executemany("DELETE FROM responses WHERE id = ?", ((one,) for one in gone))
        self._count_dropped("room", len(gone))
        return gone

    def _count_dropped(self, reason: str, num: int) -> None:
        if num:
            self._connection.execute("UPDATE dropped SET num = num + ? WHERE reason = ?", (num, reason))


class BrokenLineError(Exception):
    """A response is not kept, or one that it continues is not."""

    def __init__(self, response_id: str, missing: str | None) -> None:
        super().__init__(response_id)
        self.missing = missing


class TooLongLineError(Exception):
    """A conversation has too many bytes."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self.num_bytes = num_bytes


def check_store(path: str) -> None:
    """Make the file if there is none. Raises ConfigError if it cannot be used."""
    _connect(path).close()


def _connect(path: str | None) -> sqlite3.Connection:
    name, connection = path or ":memory:", None
    try:
        if path is not None:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # conversations are nobody else's to read
        connection = sqlite3.connect(name, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        _prepare(connection, name)
    except (OSError, *FileFault) as error:
        if connection is not None:
            connection.close()
        raise ConfigError(
            f"responses_store is {name!r}, which cannot be used: {error}; allowed is a file that this server made, or "
            "a path where it can make one"
        ) from None
    return connection


def _prepare(connection: sqlite3.Connection, name: str) -> None:
    """Make the table in a new file. A file that somebody else made stays as it is."""
    (application,), (version,) = (connection.execute(f"PRAGMA {one}").fetchone() for one in _MARKS)
    is_new = not application and not connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if not is_new and (application, version) != (_APPLICATION, _VERSION):
        connection.close()
        raise ConfigError(
            f"responses_store is {name!r}, which holds something else, or responses of another version "
            f"({version}, this is {_VERSION}): name another file"
        )
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("BEGIN IMMEDIATE")  # front ends that start together make it once
    for statement in _TABLE.split(";"):
        connection.execute(statement)
    for mark, value in zip(_MARKS, (_APPLICATION, _VERSION), strict=True):
        connection.execute(f"PRAGMA {mark} = {value}")
    connection.commit()
