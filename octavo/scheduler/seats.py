"""Seats: the worker's permanent rows, 0 .. max_num_seqs-1, handed out and taken back.

A request with n=4 needs four seats from its start although three of them stay empty until its prompt is
computed: reserved seats are promised, only which row it will be is left open.
"""

from __future__ import annotations

from octavo.request import Sequence


class Seats:
    """Owner of the rows."""

    def __init__(self, max_num_seqs: int) -> None:
        self.max_num_seqs = max_num_seqs
        self._empty = list(range(max_num_seqs - 1, -1, -1))
        self._num_reserved = 0
        self._vacated: list[int] = []

    @property
    def num_free(self) -> int:
        """Neither taken nor promised."""
        return len(self._empty) - self._num_reserved

    def take(self, sequence: Sequence) -> None:
        """Seat a sequence, and reserve for the forks it will have."""
        assert self.num_free >= num_seats(sequence), f"sequence {sequence.sequence_id} has no seat"
        sequence.row = self._empty.pop()
        self._num_reserved += num_seats(sequence) - 1

    def take_reserved(self, fork: Sequence) -> None:
        assert self._num_reserved, f"no seat was reserved for sequence {fork.sequence_id}"
        self._num_reserved -= 1
        fork.row = self._empty.pop()

    def leave(self, sequence: Sequence) -> None:
        """Give back a sequence's seat and what was reserved for its forks."""
        self._empty.append(sequence.row)
        self._vacated.append(sequence.row)
        self._num_reserved -= num_seats(sequence) - 1
        sequence.row = -1

    def take_vacated(self) -> list[int]:
        """Rows left since the last call, for the plan."""
        vacated, self._vacated = self._vacated, []
        return vacated


def num_seats(sequence: Sequence) -> int:
    """A sequence's own seat, and those of the forks its request still lacks."""
    request = sequence.request
    return 1 + request.sampling_params.n - len(request.sequences)
