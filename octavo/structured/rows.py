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
THREADS_PAY_S = 0.002
MOST_THREADS = 8
#: tokens that are forced at once; the rest follows with the next step
MAX_FORCED = 256
_ANY = -1  # a mask's word with all bits


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
        end_ids = self.compiler.vocabulary.end_ids if params.ignore_eos else ()
        self.rows[new.row] = _Row(self.compiler.matcher(new.grammar), thinking, may_force, end_ids)

    def fork(self, row: int, parent: int) -> None:
        self.rows[row] = self.rows[parent].copy()

    def leave(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.rows.pop(row, None)

    def masks(self, rows: Sequence[int], outputs: Sequence[IntArray]) -> IntArray:
        """What each of N rows may draw after its output so far: [N, words]. A row that has guesses comes several
        times, with longer outputs."""
        assert self.compiler is not None, "rows have grammars"
        made = np.zeros((len(rows), self.compiler.vocabulary.num_words), np.int32)
        if len(set(rows)) < len(rows):
            for i, row in enumerate(rows):
                self._fill(made, [row], [outputs[i]], [i])
        else:
            self._fill(made, rows, outputs, range(len(rows)))
        return made

    def following(self, row: int, output: IntArray, room: int) -> list[int]:
        """The tokens that must follow a row's output, `room` at most, and END_OF_GRAMMAR behind the last one of all.
        Empty if the row has no grammar."""
        found = self.rows.get(row)
        return [] if found is None else found.following(output, min(room, MAX_FORCED))

    def _fill(self, made: IntArray, rows: Sequence[int], outputs: Sequence[IntArray], places: Sequence[int]) -> None:
        """Write the masks of different rows."""
        found = [self.rows[row] for row in rows]
        pairs = zip(found, outputs, places, strict=True)
        able: list[tuple[_Row, LLMatcher, int]] = []
        for row, output, place in pairs:
            if row.thinks(output):
                made[place] = _ANY
            elif row.matcher is not None and row.follow(output):
                able.append((row, row.matcher, place))
        self._compute(made, [(matcher, place) for _, matcher, place in able])
        for row, _, place in able:
            row.correct(made[place])
        for row, output, place in zip(found, outputs, places, strict=True):
            row.let_thoughts_begin(output, made[place])

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
        may_force: bool = True,
        ignored_ends: Sequence[int] = (),
    ) -> None:
        """matcher: None where only thoughts are limited. ignored_ends: end tokens that come only where nothing else
        may."""
        self.matcher = matcher
        self._thinking = thinking
        self._may_force, self._ignored_ends = may_force, ignored_ends
        self._read: IntArray = np.zeros(0, np.int32)

    def copy(self) -> _Row:
        matcher = None if self.matcher is None else self.matcher.deep_copy()
        made = _Row(matcher, self._thinking, self._may_force, self._ignored_ends)
        made._read = self._read
        return made

    def thinks(self, output: IntArray) -> bool:
        """Whether the sequence is at its thoughts, where anything may come."""
        return self._thinking is not None and self._thinking.answer_start(output) is None

    def let_thoughts_begin(self, output: IntArray, mask: IntArray) -> None:
        if self._thinking is not None and (token_id := self._thinking.may_begin(output)) is not None:
            mask.view(np.uint32)[token_id // 32] |= np.uint32(1 << token_id % 32)

    def following(self, output: IntArray, room: int) -> list[int]:
        if self._thinking is not None:
            if closing := self._thinking.forced(output, room):
                return closing
            if self.thinks(output) or self._thinking.may_begin(output) is not None:
                return []
        if self.matcher is None or not self.follow(output):
            return []
        return self._forced(self.matcher, output, room)

    def follow(self, output: IntArray) -> bool:
        """Read the output to its end, which is not in the thoughts. False: it does not fit the grammar."""
        assert self.matcher is not None, "the row has a grammar"
        if self._thinking is not None:
            output = output[self._thinking.answer_start(output) or 0 :]
        num_kept = min(len(self._read), len(output))
        if self._read[:num_kept].tobytes() != output[:num_kept].tobytes():
            num_kept = int(np.argmin(self._read[:num_kept] == output[:num_kept]))
        if num_kept < len(self._read):
            self.matcher.rollback(len(self._read) - num_kept)
        num_new = len(output) - num_kept
        num_taken = self.matcher.try_consume_tokens(output[num_kept:].tolist()) if num_new else 0
        if num_new or num_kept < len(self._read):
            self._read = output[: num_kept + num_taken].copy()
        return num_taken == num_new

    def _forced(self, matcher: LLMatcher, output: IntArray, room: int) -> list[int]:
        tokens: list[int] = []
        if self._may_force and room > 0 and not matcher.is_stopped():
            tokens = matcher.compute_ff_tokens()[:room]
            tokens = tokens[: matcher.validate_tokens(tokens)] if tokens else []
            if tokens:
                self.follow(np.append(output, np.array(tokens, np.int32)))
        if matcher.is_stopped() and not self.has_failed():
            tokens.append(END_OF_GRAMMAR)
        return tokens

    def correct(self, mask: IntArray) -> None:
        """What the library does not know of a mask that it made."""
        if self.has_failed():
            mask[:] = 0
        elif self._ignored_ends:
            words = mask.view(np.uint32)
            before = [words[token_id // 32] for token_id in self._ignored_ends]
            for token_id in self._ignored_ends:
                words[token_id // 32] &= ~np.uint32(1 << token_id % 32)
            if not mask.any():
                for token_id, word in zip(self._ignored_ends, before, strict=True):
                    words[token_id // 32] |= word

    def has_failed(self) -> bool:
        """Whether the grammar has become too complex to follow."""
        if self.matcher is None or not self.matcher.is_error():
            return False
        LOGGER.warning("structured output ends its request: %s", self.matcher.get_error()[:300])
        return True
