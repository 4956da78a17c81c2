"""A request's log-probabilities as a list of rows. LogprobRows builds Python objects only as they are read.

The alternatives of one position are twenty objects or more, and a request may ask for them at a hundred thousand
positions. So a front end keeps the engine's packed rows, and its reader builds the objects row by row, on a separate
thread if there are many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, overload

import msgspec

from octavo.logprobs import FlatLogprobs, Logprob, TokenLogprobs
from octavo.messages import LogprobRow

if TYPE_CHECKING:
    from octavo.text.tokenizer import Tokenizer

#: rows packed together; with twenty alternatives each, unpacking them takes one or two milliseconds
_ROWS_A_PIECE = 256

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[LogprobRow]).decode


class PackedLogprobs(msgspec.Struct, array_like=True):
    """Rows, packed by the engine's process."""

    num_rows: int
    rows: msgspec.Raw


def pack_rows(rows: Sequence[LogprobRow]) -> list[PackedLogprobs]:
    pieces = (rows[start : start + _ROWS_A_PIECE] for start in range(0, len(rows), _ROWS_A_PIECE))
    return [PackedLogprobs(len(piece), msgspec.Raw(_encode(piece))) for piece in pieces]


def unpack_rows(packed: Sequence[PackedLogprobs]) -> list[LogprobRow]:
    return [row for piece in packed for row in _decode(piece.rows)]


class LogprobRows(Sequence["TokenLogprobs | None"]):
    """One entry per token, None for the first of a prompt. Reads like a list; a slice of it is a list."""

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
        """A copy that later rows are not added to."""
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
    """The rank of each token in the row. The best alternatives are in order, 1 = best."""
    return [row.rank, *range(1, len(row.token_ids) - len(row.asked_ranks)), *row.asked_ranks]


def named(row: LogprobRow, texts: Mapping[int, str] | None) -> TokenLogprobs:
    """Log-probabilities by token id, the chosen token first."""
    found: TokenLogprobs = {}
    for token_id, logprob, rank in zip(row.token_ids, row.logprobs, ranks(row), strict=True):
        if token_id not in found:
            found[token_id] = Logprob(logprob, rank, None if texts is None else texts[token_id])
    return found


#: dicts, columns, or rows that are read lazily
Rows = list[TokenLogprobs | None] | FlatLogprobs | LogprobRows


def no_rows(is_lazy: bool, is_flat: bool, tokenizer: Tokenizer | None) -> Rows:
    if is_lazy:
        return LogprobRows(None if tokenizer is None else tokenizer.token_texts)
    return FlatLogprobs() if is_flat else []


def add_row(rows: Rows, row: LogprobRow, tokenizer: Tokenizer | None) -> None:
    texts = None if tokenizer is None else tokenizer.token_texts
    if isinstance(rows, LogprobRows):
        rows.append(row)
    elif isinstance(rows, FlatLogprobs):
        decoded = [None if texts is None else texts[token_id] for token_id in row.token_ids]
        rows.append_fast(row.token_ids, row.logprobs, ranks(row), decoded)
    else:
        rows.append(named(row, texts))
