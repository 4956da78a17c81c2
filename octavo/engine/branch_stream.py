"""BranchStream: the outputs of branches that one call continues, which may be forked and pruned meanwhile.

    stream of 0, 1      0: "a"   1: "x"   0: "a b"   0: "a b c"   2: "a b d"   1: end   0: end   2: end
    fork(2, branch=0)                           └──────────────────── 2 begins with "a b"

A copy is a request that begins with the tokens that its parent's has: the prefix tree gives it the full blocks, and it
computes the last, partly filled one. Its outputs hold what its parent had generated in this call, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from octavo.engine.branches import Branches
from octavo.engine.turns import OutputStream
from octavo.outputs import RequestOutput
from octavo.request import Request
from octavo.sampling_params import RequestOutputKind


class BranchStream(Iterator[tuple[int, RequestOutput]]):
    """The number of a branch and its output, whenever it has new tokens.

    A branch is given back with its last output, and has its tokens from then on. `close`, or dropping the stream, ends
    those that still run: they keep the tokens of the outputs that were read. One thread reads; others may fork and
    prune.
    """

    def __init__(
        self,
        stream: OutputStream,
        branches: Branches,
        requests: Mapping[int, Request],
        copy: Callable[[Request, int], Request],
        *,
        is_whole: bool,
    ) -> None:
        """branches: lent to this call, `requests` has their numbers. copy: makes the request of a copy, given its
        parent's and how much higher its number is. is_whole: no branch is given back before all have ended, and none
        keeps tokens otherwise."""
        self._stream = stream
        self._branches = branches
        self._copy = copy
        self._is_whole = is_whole
        self._requests = dict(requests)
        self._numbers = {request.request_id: number for number, request in requests.items()}
        self._read: dict[int, list[int]] = {number: [] for number in requests}  # of branches not given back

    @property
    def numbers(self) -> list[int]:
        """Of the branches that it began with, then of their copies."""
        return list(self._requests)

    def __next__(self) -> tuple[int, RequestOutput]:
        try:
            output = next(self._stream)
        except StopIteration:
            self._give_back(list(self._read))
            raise
        except Exception:
            self.close()
            raise
        number = self._numbers[output.request_id]
        for completion in output.outputs:
            is_delta = self._requests[number].sampling_params.output_kind is RequestOutputKind.DELTA
            before = self._read[number] if is_delta else []
            self._read[number] = [] if completion.finish_reason == "error" else before + completion.token_ids
        if output.finished and not self._is_whole:
            self._give_back([number])
        return number, output

    def fork(self, n: int, branch: int) -> list[int]:
        """As Branches.fork: copies of a branch that runs go on from the tokens that it has now."""
        number, *copies = self._branches.fork(n, branch, may_be_lent=True)
        if copies and self._branches.is_lent(copies[0]):
            try:
                self._begin(number, copies)
            except BaseException:
                self._give_back(copies)
                for one in copies:
                    self._branches.prune(one)
                raise
        return [number, *copies]

    def prune(self, branch: int) -> None:
        """As Branches.prune: one that runs ends, with a last output, and its blocks are free at once."""
        number = self._branches.prune(branch, may_be_lent=True)
        if number in self._read:
            self._stream.abort(self._requests[number].request_id)

    def close(self) -> None:
        """End the branches that still run."""
        self._stream.close()
        self.__del__()

    def __del__(self) -> None:
        # The garbage collector may call this at any moment. The stream, if it is dropped as well, ends its requests.
        if self._is_whole:
            self._read = {number: [] for number in self._read}
        self._give_back(list(self._read))

    def _begin(self, parent: int, copies: list[int]) -> None:
        before = self._requests[parent]
        requests = {number: self._copy(before, number - parent) for number in copies}
        self._numbers |= {request.request_id: number for number, request in requests.items()}
        self._requests |= requests
        self._read |= {number: [] for number in copies}
        self._stream.fork(before.request_id, list(requests.values()))

    def _give_back(self, numbers: Sequence[int]) -> None:
        """With the tokens that were read."""
        self._branches.give_back(numbers, {number: self._read.pop(number, []) for number in numbers})
