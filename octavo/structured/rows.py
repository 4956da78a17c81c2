"""ConstrainedRows: the grammar of each row that has one, and where its answer stands in it.

    tokens so far   {"name": "Ada          the matcher has read them
    mask            ", Lovelace ...        one bit a token: what may come next
    forced          {"name": "             what must come next, whatever the model says

A matcher follows its row's tokens: it reads those that are new, and takes back those that are gone (guesses that were
wrong). So nothing needs to be told of preemption, forks or steps that were dropped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from octavo.messages import END_OF_GRAMMAR, NewRow
from octavo.observe.logging import LOGGER
from octavo.sampling.columns import IntArray
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.thinking import Thinking

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

#: masks that tell how long the others of a step will take
MANY = 4
#: seconds from which on several threads save more than it takes to wake them
THREADS_PAY_S = 0.01
MOST_THREADS = 8
#: tokens that are forced at once; the rest follows with the next step
MAX_FORCED = 256
_ANY = -1  # a mask's word with all bits
_FEW_WORDS = 64  # of a mask, in which a token that may come is mostly found


class ConstrainedRows:
    """Owner of the matchers. compiler: given before the first row that has a grammar. rows: those that have one, or a
    budget of thoughts."""

    def __init__(self) -> None:
        self.compiler: GrammarCompiler | None = None
        self.rows: dict[int, _Row] = {}
        self._threads: LLExecutor | None = None

    def enter(self, new: NewRow) -> None:
        """A sequence with a grammar, or a budget of thoughts, enters a row."""
        thinking = None if new.thoughts is None else Thinking(new.thoughts)
        if new.grammar is None:
            self.rows[new.row] = _Row(None, thinking)
            return
        assert self.compiler is not None, "the engine gives the compiler before the first such plan"
        params = new.sampling_params
        may_force = not params.reports_logprobs  # a forced token has no log-probability: the model was not asked
        matcher = self.compiler.matcher(new.grammar)
        self.rows[new.row] = _Row(matcher, thinking, may_force=may_force, ignores_ends=params.ignore_eos)

    def fork(self, row: int, parent: int) -> None:
        self.rows[row] = self.rows[parent].copy()

    def leave(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.rows.pop(row, None)

    def masks(self, rows: Sequence[int], outputs: Sequence[IntArray]) -> IntArray:
        """What each of N rows may draw after its output so far: [N, words]. A row that has guesses comes several
        times, with longer outputs."""
        assert self.compiler is not None, "rows have grammars"
        made = np.empty((len(rows), self.compiler.vocabulary.num_words), np.int32)
        self.fill(made, rows, outputs)
        return made

    def fill(self, made: IntArray, rows: Sequence[int], outputs: Sequence[IntArray]) -> None:
        """Write the same masks into memory that is there."""
        if len(set(rows)) < len(rows):
            for i, row in enumerate(rows):
                self._fill(made, [row], [outputs[i]], [i])
        else:
            self._fill(made, rows, outputs, range(len(rows)))

    def following(self, row: int, output: IntArray, room: int) -> list[int]:
        """The tokens that must follow a row's output, `room` at most, and END_OF_GRAMMAR behind the last one of all.
        Empty if the row has no grammar."""
        found = self.rows.get(row)
        return [] if found is None else found.following(output, min(room, MAX_FORCED))

    def _fill(self, made: IntArray, rows: Sequence[int], outputs: Sequence[IntArray], places: Sequence[int]) -> None:
        """Write the masks of different rows."""
        able: list[tuple[LLMatcher, int]] = []
        endless: list[int] = []
        for number, output, place in zip(rows, outputs, places, strict=True):
            row = self.rows[number]
            if row.thinking is not None and row.thinks(output):
                made[place] = _ANY
            elif row.matcher is not None and row.follow(output):
                able.append((row.matcher, place))
                if row.ignores_ends:
                    endless.append(place)
            else:
                made[place] = 0
        self._compute(made, able)
        for matcher, place in able:
            if matcher.is_error():
                _say_why(matcher)
                made[place] = 0
        if endless:
            self._ignore_ends(made, endless)
        for number, output, place in zip(rows, outputs, places, strict=True):
            if (thinking := self.rows[number].thinking) is not None:
                _let_begin(thinking, output, made[place])

    def _ignore_ends(self, made: IntArray, places: list[int]) -> None:
        """Take the end tokens out of these masks, but where nothing else may come."""
        assert self.compiler is not None, "rows have grammars"
        end_ids = self.compiler.vocabulary.end_ids
        masks, index = made.view(np.uint32), np.array(places)
        before = [masks[index, end // 32] for end in end_ids]
        for end in end_ids:
            masks[index, end // 32] &= np.uint32(~(1 << end % 32) & 0xFFFFFFFF)
        for row in np.flatnonzero(~masks[index, :_FEW_WORDS].any(1)).tolist():
            if not made[places[row]].any():
                for end, words in zip(end_ids, before, strict=True):
                    masks[places[row], end // 32] |= words[row]

    def _compute(self, made: IntArray, matchers: Sequence[tuple[LLMatcher, int]]) -> None:
        """The first ones here; the others by several threads if the first took long."""
        first, width = made.ctypes.data, made.shape[1] * made.itemsize
        begin = time.perf_counter()
        for done, (matcher, place) in enumerate(matchers):
            if done == MANY and (time.perf_counter() - begin) / MANY * (len(matchers) - MANY) > THREADS_PAY_S:
                self._executor().unsafe_compute_mask_ptr(list(matchers[done:]), first, width, len(made))
                return
            matcher.unsafe_compute_mask_ptr(first + place * width, width)

    def _executor(self) -> LLExecutor:
        if self._threads is None:
            from llguidance import LLExecutor

            self._threads = LLExecutor(num_threads=min(MOST_THREADS, os.cpu_count() or 1))
        return self._threads


class _Row:
    """One row's matcher, and the answer that it has read: the output behind the thoughts, if there are any."""

    def __init__(
        self,
        matcher: LLMatcher | None,
        thinking: Thinking | None,
        *,
        may_force: bool = True,
        ignores_ends: bool = False,
    ) -> None:
        """matcher: None where only thoughts are limited. ignores_ends: end tokens come only where nothing else may."""
        self.matcher, self.thinking = matcher, thinking
        self.may_force, self.ignores_ends = may_force, ignores_ends
        self._read = b""  # of an array of tokens

    def copy(self) -> _Row:
        matcher = None if self.matcher is None else self.matcher.deep_copy()
        made = _Row(matcher, self.thinking, may_force=self.may_force, ignores_ends=self.ignores_ends)
        made._read = self._read
        return made

    def thinks(self, output: IntArray) -> bool:
        """Whether the sequence is at its thoughts, where anything may come."""
        return self.thinking is not None and self.thinking.answer_start(output) is None

    def following(self, output: IntArray, room: int) -> list[int]:
        if self.thinking is not None:
            if closing := self.thinking.forced(output, room):
                return closing
            if self.thinks(output) or self.thinking.may_begin(output) is not None:
                return []
        if self.matcher is None or not self.follow(output):
            return []
        return self._forced(self.matcher, output, room)

    def follow(self, output: IntArray) -> bool:
        """Read the output to its end, which is not in the thoughts. False: it does not fit the grammar."""
        assert self.matcher is not None, "the row has a grammar"
        if self.thinking is not None:
            output = output[self.thinking.answer_start(output) or 0 :]
        given = output.tobytes()
        if given == self._read:
            return True
        num_kept = len(self._read) // output.itemsize
        if not given.startswith(self._read):
            num_kept = self._take_back(self.matcher, output)
        new = output[num_kept:].tolist()
        num_taken = self.matcher.try_consume_tokens(new) if new else 0
        self._read = given[: (num_kept + num_taken) * output.itemsize]
        return num_taken == len(new)

    def _take_back(self, matcher: LLMatcher, output: IntArray) -> int:
        """Of the tokens that were read, those that the output does not begin with -> how many stay."""
        read = np.frombuffer(self._read, output.dtype)
        num = min(len(read), len(output))
        differ = read[:num] != output[:num]
        num_kept = int(differ.argmax()) if differ.any() else num
        matcher.rollback(len(read) - num_kept)
        # It keeps the last mask, and knows it again by the number of its lexemes: that must not be one of another text.
        matcher.compute_bitmask()
        return num_kept

    def _forced(self, matcher: LLMatcher, output: IntArray, room: int) -> list[int]:
        tokens: list[int] = []
        if self.may_force and room > 0 and not matcher.is_stopped():
            tokens = matcher.compute_ff_tokens()[:room]
            tokens = tokens[: matcher.validate_tokens(tokens)] if tokens else []
            if tokens:
                self.follow(np.append(output, np.array(tokens, np.int32)))
        if matcher.is_stopped():
            if matcher.is_error():
                _say_why(matcher)
            else:
                tokens.append(END_OF_GRAMMAR)
        return tokens


def _let_begin(thinking: Thinking, output: IntArray, mask: IntArray) -> None:
    """Thoughts may begin where the answer may."""
    if (token_id := thinking.may_begin(output)) is not None:
        mask.view(np.uint32)[token_id // 32] |= np.uint32(1 << token_id % 32)


def _say_why(matcher: LLMatcher) -> None:
    """The grammar has become too complex to follow."""
    LOGGER.warning("structured output ends its request: %s", matcher.get_error()[:300])
