"""The roster: every request and sequence that has arrived and not ended.

Ids are given at arrival, the samples of a request side by side, although all but the first sample only come
to be when the prompt is computed. So ids order by arrival, then by sample:

    request "a", n=3   ->   0 1 2        request "b", n=1   ->   3
"""

from __future__ import annotations

from octavo.errors import InvalidRequestError
from octavo.request import Request, RequestId, Sequence, SequenceId, SequenceState
from octavo.scheduler.seats import num_seats


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
