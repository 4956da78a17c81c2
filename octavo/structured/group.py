"""Group: the answers of several rows, whose matchers read, force and make masks one after another.

Mostly the same rows come step after step, each with a token more. What is looked up for each of them is then the same,
and a step does little more than call the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.sampling.columns import IntArray
from octavo.structured.answer import NOTHING, TOKEN_SIZE, Answer
from octavo.structured.crew import Crew
from octavo.structured.thinking import Thinking

if TYPE_CHECKING:
    from llguidance import LLMatcher

#: tokens that are forced at once; the rest follows with the next step
MAX_FORCED = 256
_ANY = -1  # a mask's word with all bits
#: words with all bits but one
_ALL_BUT = ~(np.ones(32, np.int32) << np.arange(32, dtype=np.int32))
_FEW_WORDS = 16  # of a mask, in which a token that may come is mostly found


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The answers of these rows. matchers: theirs; None if some have none, or have thoughts. end_ids: what ends an
    answer."""

    rows: list[int]
    answers: list[Answer]
    matchers: list[LLMatcher] | None
    end_ids: Sequence[int]

    @classmethod
    def of(cls, rows: list[int], answers: list[Answer], end_ids: Sequence[int]) -> Group:
        is_plain = all(answer.grammar is not None and answer.thinking is None for answer in answers)
        return cls(rows, answers, [answer.ready() for answer in answers] if is_plain else None, end_ids)

    def read(self, outputs: Sequence[IntArray]) -> bool:
        """Read the outputs, but of those in the thoughts -> whether all of the others fit."""
        if self.matchers is not None:
            given, read = [output.tobytes() for output in outputs], [answer.read for answer in self.answers]
            for answer, whole in zip(self.answers, given, strict=True):
                answer.given = whole
            if given == read:
                return True
            if _are_longer_by_one(given, read):
                each = zip(self.answers, self.matchers, outputs, strict=True)
                for answer, matcher, output in each:
                    if matcher.try_consume_tokens([output.item(-1)]):
                        answer.read = answer.given
                return [answer.read for answer in self.answers] == given
        for answer, output in zip(self.answers, outputs, strict=True):
            if answer.grammar is not None and not answer.thinks(output):
                answer.follow(output)
        return all(answer.fits for answer in self.answers)

    def has_read(self, lens: list[int]) -> bool:
        """Whether what was read last are answers of these lengths, and all of them fit."""
        return self.matchers is not None and lens == [len(answer.read) // TOKEN_SIZE for answer in self.answers]

    def following(self, outputs: Sequence[IntArray], rooms: Sequence[int]) -> list[list[int]]:
        """The tokens that must follow each output, as many as it has room for, and END_OF_GRAMMAR behind the last one
        of all."""
        if self.read(outputs) and self.matchers is not None and all(answer.may_force for answer in self.answers):
            forced = [matcher.compute_ff_tokens() for matcher in self.matchers]
            if not any(forced) and not any(matcher.is_stopped() for matcher in self.matchers):
                return [NOTHING] * len(forced)
        each = zip(self.answers, outputs, rooms, strict=True)
        return [answer.following(output, min(room, MAX_FORCED)) for answer, output, room in each]

    def fill(self, made: IntArray, outputs: Sequence[IntArray], crew: Crew) -> None:
        """Write the masks of the tokens that may follow the outputs."""
        if self.read(outputs) and self.matchers is not None:
            self.fill_plain(made, crew)
            return
        made[:] = 0
        able = []
        for place, (answer, output) in enumerate(zip(self.answers, outputs, strict=True)):
            if answer.thinks(output):
                made[place] = _ANY
            elif answer.grammar is not None and answer.fits:
                able.append(place)
        self._fill(made, able, crew)
        for answer, output, mask in zip(self.answers, outputs, made, strict=True):
            _let_begin(answer.thinking, output, mask)

    def fill_plain(self, made: IntArray, crew: Crew) -> None:
        """The same, where all answers fit that were read last."""
        self._fill(made, range(len(self.answers)), crew)

    def _fill(self, made: IntArray, places: Sequence[int], crew: Crew) -> None:
        answers = [self.answers[place] for place in places]
        matchers = [answer.ready() for answer in answers]
        crew.fill(made, matchers, places)
        if any(matcher.is_error() for matcher in matchers):
            for answer, place in zip(answers, places, strict=True):
                if answer.ready().is_error():
                    answer.say_why()
                    made[place] = 0
        if endless := [place for answer, place in zip(answers, places, strict=True) if answer.ignores_ends]:
            _ignore_ends(made, endless, self.end_ids)


def _ignore_ends(made: IntArray, places: list[int], end_ids: Sequence[int]) -> None:
    """Take the end tokens out of these masks, but where nothing else may come."""
    index: Any = slice(None) if len(places) == len(made) else np.array(places)
    before = [made[index, end // 32].copy() for end in end_ids]
    for end in end_ids:
        made[index, end // 32] &= _ALL_BUT[end % 32]
    has_any = made[index, :_FEW_WORDS].any(1)
    for row in [] if has_any.all() else np.flatnonzero(~has_any).tolist():
        if not made[places[row]].any():
            for end, words in zip(end_ids, before, strict=True):
                made[places[row], end // 32] |= words[row]


def _let_begin(thinking: Thinking | None, output: IntArray, mask: IntArray) -> None:
    """Thoughts may begin where the answer may."""
    if thinking is not None and (token_id := thinking.may_begin(output)) is not None:
        mask.view(np.uint32)[token_id // 32] |= np.uint32(1 << token_id % 32)


def _are_longer_by_one(given: list[bytes], read: list[bytes]) -> bool:
    """Whether each of these arrays of tokens is what was read, and one token more."""
    same = all(map(bytes.startswith, given, read))
    return same and all(len(one) == len(old) + TOKEN_SIZE for one, old in zip(given, read, strict=True))
