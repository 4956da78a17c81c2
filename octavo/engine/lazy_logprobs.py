"""Log-probabilities that become Python objects only as they are read, and are small until then.

A position's alternatives are twenty objects or more, and a request may ask for them at a hundred thousand positions. A
front end keeps what the engine sent, and whoever reads it, on a thread of its own if it is much, makes the objects one
row at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import overload

import msgspec

from octavo.messages import LogprobRow
from octavo.outputs import Logprob, TokenLogprobs

#: rows packed together; to unpack them takes a millisecond or two, with twenty alternatives each
_ROWS_A_PIECE = 256

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[LogprobRow]).decode


class PackedLogprobs(msgspec.Struct, array_like=True):
    """Rows as the engine's process packs them."""

    num_rows: int
    rows: msgspec.Raw


def pack_rows(rows: Sequence[LogprobRow]) -> list[PackedLogprobs]:
    pieces = (rows[start : start + _ROWS_A_PIECE] for start in range(0, len(rows), _ROWS_A_PIECE))
    return [PackedLogprobs(len(piece), msgspec.Raw(_encode(piece))) for piece in pieces]


class LogprobRows(Sequence["TokenLogprobs | None"]):
    """One entry a token, None for a prompt's first. Reads like a list, and a slice of it is one."""

    def __init__(self, texts: Mapping[int, str] | None) -> None:
        self._texts = texts
        self._pieces: list[LogprobRow | PackedLogprobs | None] = []
        self._len = 0

    def append(self, row: LogprobRow | None) -> None:
        self._pieces.append(row)
        self._len += 1

    def extend(self, packed: Sequence[PackedLogprobs]) -> None:
        self._pieces += packed
        self._len += sum(piece.num_rows for piece in packed)

    def copy(self) -> LogprobRows:
        """As it is now; what comes later is not in it."""
        made = LogprobRows(self._texts)
        made._pieces, made._len = list(self._pieces), self._len
        return made

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[TokenLogprobs | None]:
        for piece in self._pieces:
            if piece is None:
                yield None
            elif isinstance(piece, PackedLogprobs):
                for row in _decode(piece.rows):
                    yield named(row, self._texts)
            else:
                yield named(piece, self._texts)

    @overload
    def __getitem__(self, index: int) -> TokenLogprobs | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenLogprobs | None]: ...
    def __getitem__(self, index: int | slice) -> TokenLogprobs | list[TokenLogprobs | None] | None:
        if isinstance(index, slice):
            return list(self)[index]
        if index < 0:
            index += self._len
        if not 0 <= index < self._len:
            raise IndexError(f"row {index} of {self._len}")
        return next(islice(self, index, None))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it grows


def ranks(row: LogprobRow) -> list[int]:
    """Of each of its tokens. The best alternatives' are their order, 1 = best."""
    return [row.rank, *range(1, len(row.token_ids) - len(row.asked_ranks)), *row.asked_ranks]


def named(row: LogprobRow, texts: Mapping[int, str] | None) -> TokenLogprobs:
    """Logprobs by token id, the chosen token first."""
    found: TokenLogprobs = {}
    for token_id, logprob, rank in zip(row.token_ids, row.logprobs, ranks(row), strict=True):
        if token_id not in found:
            found[token_id] = Logprob(logprob, rank, None if texts is None else texts[token_id])
    return found
