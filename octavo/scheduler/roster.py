"""The roster: every request and sequence that has arrived and not ended, and the rows that sequences have.

Ids are given at arrival, the samples of a request side by side, although all but the first sample only come
to be when the prompt is computed. So ids order by arrival, then by sample:

    request "a", n=3   ->   0 1 2        request "b", n=1   ->   3
"""

from __future__ import annotations

from octavo.errors import InvalidRequestError
from octavo.request import Request, RequestId, Sequence, SequenceId, SequenceState


class Roster:
    """Owner of ids and of who is still here."""

    def __init__(self) -> None:
        self.sequences: dict[SequenceId, Sequence] = {}
        self.requests: dict[RequestId, Request] = {}
        self._num_open: dict[RequestId, int] = {}
        self._next_sequence_id = 0

    def enter(self, request: Request) -> Sequence:
        """A request arrives; its sequence 0 stands for all of it."""
        name = request.request_id
        if name in self.requests:
            raise InvalidRequestError(f"request id {name!r} is in use: choose another or wait for its end")
        assert not request.sequences, f"request {name!r} brings sequences; they are made here"
        sequence = Sequence(SequenceId(self._next_sequence_id), request, 0, list(request.prompt_token_ids))
        self._next_sequence_id += request.sampling_params.n
        self.requests[name] = request
        self._num_open[name] = request.sampling_params.n
        self._add(sequence)
        return sequence

    def fork(self, parent: Sequence) -> Sequence:
        """The next sample of a request, running where its parent is."""
        index = len(parent.request.sequences)
        child = Sequence(
            sequence_id=SequenceId(parent.sequence_id + index),
            request=parent.request,
            index=index,
            token_ids=list(parent.token_ids),
            num_computed_tokens=parent.num_computed_tokens,
            expected_len=parent.expected_len,
            state=SequenceState.RUNNING,
        )
        self._add(child)
        return child

    def leave(self, sequence: Sequence) -> bool:
        """A sequence ended, and with sequence 0 the samples that never came to be. True: so did its request."""
        name = sequence.request.request_id
        del self.sequences[sequence.sequence_id]
        self._num_open[name] -= num_seats(sequence)
        if self._num_open[name]:
            return False
        del self._num_open[name], self.requests[name]
        return True

    def _add(self, sequence: Sequence) -> None:
        sequence.request.sequences.append(sequence)
        self.sequences[sequence.sequence_id] = sequence


class Seats:
    """The worker's permanent rows, 0 .. max_num_seqs-1, handed out and taken back.

    A request with n=4 needs four seats from its start, although three stay empty until its prompt is computed. They are
    reserved: promised, while it is still open which row each will be.
    """

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
