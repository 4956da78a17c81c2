"""RepetitionDetectionParams: when an answer that only repeats itself ends. vLLM's names and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Listlike
from dataclasses import dataclass, fields

from octavo.checked_parameters import bad_value, checked_whole
from octavo.errors import InvalidRequestError
from octavo.shown import shown, suggestion

#: each new token is compared with so many before it
MAX_PATTERN_SIZE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionDetectionParams:
    """An answer ends when its last tokens are one pattern, min_count times in a row.

    max_pattern_size, min_pattern_size: tokens of a pattern; a max_pattern_size of 0 looks for none, a min_pattern_size
    of 0 is 1.
    """

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0

    def __post_init__(self) -> None:
        of = "repetition_detection."
        for name, most in (("max_pattern_size", MAX_PATTERN_SIZE), ("min_pattern_size", MAX_PATTERN_SIZE)):
            object.__setattr__(self, name, checked_whole(of + name, getattr(self, name), 0, most))
        object.__setattr__(self, "min_count", checked_whole(f"{of}min_count", self.min_count, 0))
        if self.min_pattern_size > self.max_pattern_size:
            raise InvalidRequestError(
                f"{of}min_pattern_size is {self.min_pattern_size}, allowed is 0 to max_pattern_size, which is "
                f"{self.max_pattern_size}: lower the one or raise the other"
            )
        if self.max_pattern_size and self.min_count < 2:
            raise InvalidRequestError(
                f"{of}min_count is {self.min_count}, allowed is 2 or more: one pattern alone is no repetition"
            )

    @classmethod
    def of(cls, given: object) -> RepetitionDetectionParams | None:
        """From a mapping of the fields, as requests have it; None if it looks for nothing."""
        if isinstance(given, Mapping):
            names = [one.name for one in fields(cls)]
            if unknown := [name for name in given if name not in names]:
                raise InvalidRequestError(
                    f"repetition_detection holds the field {shown(unknown[0])}; {suggestion(str(unknown[0]), names)}"
                )
            given = cls(**{name: value for name, value in given.items() if value is not None})
        if not isinstance(given, cls):
            raise bad_value("repetition_detection", given, "are a RepetitionDetectionParams and a dict of its fields")
        return given if given.max_pattern_size else None


class RepeatCounts:
    """Follows one sequence's output.

        output   a b c a b c a b      distance 3: the last 5 tokens each equal the one 3 before them
        pattern  `----´`----´`--

    A pattern of p tokens stands there c times when the last p * (c - 1) tokens each equal the one p before them. So a
    count for each distance is enough, and most distances have none: a token costs one look at the max_pattern_size
    tokens before it.
    """

    __slots__ = ("_asked", "_begin", "_equal")

    def __init__(self, asked: RepetitionDetectionParams, begin: int) -> None:
        """begin: where the output begins among the sequence's tokens."""
        self._asked = asked
        self._begin = begin
        self._equal: dict[int, int] = {}  # distance -> how many of the last tokens equal the one so far before them

    def ends_with(self, token_ids: Listlike[int]) -> bool:
        """Whether the output repeats itself, now that one more token is its last."""
        asked, before = self._asked, self._equal
        last, token_id = len(token_ids) - 1, token_ids[-1]
        first = max(self._begin, last - asked.max_pattern_size)
        near = token_ids[first : max(first, last + 1 - max(1, asked.min_pattern_size))]
        self._equal = equal = {}
        place, found = -1, False
        for _ in range(near.count(token_id)):
            place = near.index(token_id, place + 1)
            distance = last - first - place
            equal[distance] = num = before.get(distance, 0) + 1
            found = found or num >= distance * (asked.min_count - 1)
        return found
