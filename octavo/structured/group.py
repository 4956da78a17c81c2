"""Group: the answers of several rows, whose matchers read, force and make masks one after another.

Mostly the same rows come step after step, each with a token more. What is looked up for each of them is then the same,
and a step does little more than call the library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.sampling.columns import IntArray
from octavo.structured.answer import NOTHING, TOKEN_SIZE, Answer
from octavo.structured.crew import FEW, Crew
from octavo.structured.thinking import Thinking

if TYPE_CHECKING:
    from llguidance import LLMatcher

#: tokens that are forced at once; the rest follows with the next step
MAX_FORCED = 256
_ANY = -1  # a mask's word with all bits
#: words with all bits but one
_ALL_BUT = ~(np.ones(32, np.int32) << np.arange(32, dtype=np.int32))
_ALL_BUT_BITS: list[int] = _ALL_BUT.tolist()
_FEW_WORDS = 16  # of a mask, in which two tokens that may come are mostly found


class Group:
    """The answers of these rows. It is plain if all of them have grammars and none has thoughts: then it has their
    matchers at hand."""

    def __init__(
        self, rows: list[int], answers: list[Answer], end_ids: Sequence[int], *, are_drawn: bool = True
    ) -> None:
        """end_ids: what ends an answer. are_drawn: tokens come from masks; else they are guesses, which seldom fit."""
        self.rows, self.answers = rows, answers
        self._end_ids, self._are_drawn = end_ids, are_drawn
        self.is_plain = all(answer.grammar is not None and answer.thinking is None for answer in answers)
        self._matchers: list[LLMatcher] = [answer.ready() for answer in answers] if self.is_plain else []
        self._endless = [place for place, answer in enumerate(answers) if answer.ignores_ends]
        self._others: IntArray = np.full(_FEW_WORDS, _ANY, np.int32)  # bits of tokens that do not end an answer
        for end in end_ids:
            if end < 32 * _FEW_WORDS:
                self._others[end // 32] &= _ALL_BUT[end % 32]
        self._other_bits: list[int] = self._others.tolist()

    def read(self, outputs: Sequence[IntArray]) -> bool:
        """Read the outputs, but of those in the thoughts -> whether all of the others fit."""
        if self.is_plain:
            return self._read_plain(outputs)
        for answer, output in zip(self.answers, outputs, strict=True):
            if answer.grammar is not None and not answer.thinks(output):
                answer.follow(output)
        return all(answer.fits for answer in self.answers)

    def has_read(self, outputs: Sequence[IntArray]) -> bool:
        """Whether it is these outputs that were read last."""
        return all(answer.read == output.tobytes() for answer, output in zip(self.answers, outputs, strict=True))

    def following(self, outputs: Sequence[IntArray], rooms: Sequence[int], places: Iterable[int]) -> list[list[int]]:
        """The tokens that must follow each output, as many as it has room for, and END_OF_GRAMMAR behind the last one
        of all. Outputs have been read. places: of outputs that something may have to follow."""
        found = [NOTHING] * len(self.answers)
        for place in places:
            found[place] = self.answers[place].following(outputs[place], min(rooms[place], MAX_FORCED))
        return found

    def not_open(self) -> list[int]:
        """The places where something must follow, if the group is plain."""
        each = enumerate(self._matchers)
        return [place for place, matcher in each if matcher.compute_ff_tokens() or matcher.is_stopped()]

    def fill(self, made: IntArray, outputs: Sequence[IntArray], crew: Crew) -> None:
        """Write the masks of the tokens that may follow the outputs."""
        if self.read(outputs) and self.is_plain:
            self.fill_plain(made, crew)
            return
        made[:] = 0
        able = []
        for place, (answer, output) in enumerate(zip(self.answers, outputs, strict=True)):
            if answer.thinks(output):
                made[place] = _ANY
            elif answer.grammar is not None and answer.fits:
                able.append(place)
        crew.fill(made, [self.answers[place].ready() for place in able], able)
        self._finish(made, able, [place for place in able if self.answers[place].ignores_ends])
        for answer, output, mask in zip(self.answers, outputs, made, strict=True):
            _let_begin(answer.thinking, output, mask)

    def fill_plain(self, made: IntArray, crew: Crew) -> list[int]:
        """The same, where the group is plain and all answers fit that were read last -> the places of narrow masks: of
        those that let one token follow, or none but the end, and perhaps of others."""
        crew.fill(made, self._matchers, range(len(made)))
        if len(made) <= FEW:
            return self._finish_few(made)
        few = made[:, :_FEW_WORDS]
        words = few & self._others[: few.shape[1]]
        has_two = (words & (words - 1)).any(axis=1)
        narrow = [] if has_two.all() else np.flatnonzero(has_two == 0).tolist()
        self._finish(made, narrow, self._endless)
        return narrow

    def _finish_few(self, made: IntArray) -> list[int]:
        """The end of `fill_plain` for few rows, whose words take less time one by one than in NumPy's calls."""
        narrow = [place for place, mask in enumerate(made) if not self._has_two(mask)]
        for place in self._endless:
            if place in narrow:
                continue
            mask = made[place]
            for end in self._end_ids:
                mask[end // 32] = mask.item(end // 32) & _ALL_BUT_BITS[end % 32]
        self._finish(made, narrow, [place for place in narrow if place in self._endless])
        return narrow

    def _has_two(self, mask: IntArray) -> bool:
        """Whether two tokens that do not end an answer may come, as far as a mask's first words tell."""
        for word, others in enumerate(self._other_bits[: len(mask)]):
            bits = mask.item(word) & others
            if bits & (bits - 1):
                return True
        return False

    def _read_plain(self, outputs: Sequence[IntArray]) -> bool:
        """Mostly each output is what was read and a token more, which came from its mask: so it is not tried first."""
        fits, matchers, end_ids = True, self._matchers, self._end_ids
        for place, (answer, output) in enumerate(zip(self.answers, outputs, strict=True)):
            given, read = output.tobytes(), answer.read
            answer.given = given
            if given == read:
                continue
            is_longer = self._are_drawn and len(given) == len(read) + TOKEN_SIZE and given.startswith(read)
            if is_longer and (token_id := output.item(-1)) not in end_ids:
                if matchers[place].consume_token(token_id):
                    answer.read = given
                    continue
                matchers[place] = answer.begin_again()
            answer.follow(output)
            fits &= answer.fits
        return fits

    def _finish(self, made: IntArray, narrow: list[int], endless: list[int]) -> None:
        """Let nothing follow where a matcher gave up, and no end tokens at the endless places, but where nothing else
        may come. narrow: the places where either may be."""
        for place in narrow:
            if self.answers[place].ready().is_error():
                self.answers[place].say_why()
                made[place] = 0
        if endless:
            _ignore_ends(made, endless, set(narrow).intersection(endless), self._end_ids)


def _ignore_ends(made: IntArray, places: list[int], narrow: Iterable[int], end_ids: Sequence[int]) -> None:
    """Take the end tokens out of these masks, but where nothing else may come, which is at narrow places."""
    before = {place: made[place].copy() for place in narrow}
    index: Any = slice(None) if len(places) == len(made) else np.array(places)
    for end in end_ids:
        made[index, end // 32] &= _ALL_BUT[end % 32]
    for place, mask in before.items():
        if not made[place].any():
            made[place] = mask


def _let_begin(thinking: Thinking | None, output: IntArray, mask: IntArray) -> None:
    """Thoughts may begin where the answer may."""
    if thinking is not None and (token_id := thinking.may_begin(output)) is not None:
        mask.view(np.uint32)[token_id // 32] |= np.uint32(1 << token_id % 32)
