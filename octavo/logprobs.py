"""Log-probabilities of tokens as a request's outputs hold them, with vLLM's names."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass, field
from typing import NoReturn, overload


@dataclass(slots=True)
class Logprob:
    """One token's log-probability, by default under the raw logits (see logprobs_mode). rank 1: the most likely."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]


@dataclass(slots=True)
class FlatLogprobs(MutableSequence[TokenLogprobs]):
    """Log-probabilities of many positions in six lists, without an object per token.

        start_indices  0        3     4          position i has the tokens start_indices[i] .. end_indices[i] - 1
        end_indices    3        4     7
        token_ids      7 12 3 | 5   | 9 1 2      and logprobs, ranks and decoded_tokens beside them

    It reads as a list: an index builds the position's dict, a slice is another FlatLogprobs. It only grows at its end.
    """

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def append(self, one: TokenLogprobs | None) -> None:
        """Add a position; None, for the first one of a prompt, has no tokens."""
        values = (one or {}).values()
        columns = [value.logprob for value in values], [value.rank for value in values]
        self.append_fast(list(one or {}), *columns, [value.decoded_token for value in values])

    def append_fast(
        self,
        token_ids: list[int],
        logprobs: list[float],
        ranks: Iterable[int | None],
        decoded_tokens: Iterable[str | None],
    ) -> None:
        """Add a position from columns."""
        self.start_indices.append(len(self.token_ids))
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.ranks += ranks
        self.decoded_tokens += decoded_tokens
        self.end_indices.append(len(self.token_ids))

    def copy(self) -> FlatLogprobs:
        return self[:]

    def __len__(self) -> int:
        return len(self.start_indices)

    @overload
    def __getitem__(self, index: int) -> TokenLogprobs: ...
    @overload
    def __getitem__(self, index: slice) -> FlatLogprobs: ...
    def __getitem__(self, index: int | slice) -> TokenLogprobs | FlatLogprobs:
        if isinstance(index, slice):
            part = FlatLogprobs()
            for place in range(*index.indices(len(self))):
                own = slice(self.start_indices[place], self.end_indices[place])
                part.append_fast(self.token_ids[own], self.logprobs[own], self.ranks[own], self.decoded_tokens[own])
            return part
        places = range(self.start_indices[index], self.end_indices[index])
        return {
            self.token_ids[at]: Logprob(self.logprobs[at], self.ranks[at], self.decoded_tokens[at]) for at in places
        }

    def __setitem__(self, index: object, value: object) -> NoReturn:
        raise TypeError("a FlatLogprobs grows at its end only")

    def __delitem__(self, index: object) -> NoReturn:
        raise TypeError("a FlatLogprobs grows at its end only")

    def insert(self, index: object, value: object) -> NoReturn:
        raise TypeError("a FlatLogprobs grows at its end only")
