"""ConstrainedRows: the grammar of each row that has one, and where its answer stands in it.

    tokens so far   {"name": "Ada          the matcher has read them
    mask            ", Lovelace ...        one bit a token: what may come next
    forced          {"name": "             what must come next, whatever the model says

A matcher follows its row's tokens: it reads those that are new, and takes back those that are gone. So nothing needs to
be told of preemption, forks or steps that were dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from octavo.messages import NewRow
from octavo.observe.machine import num_cores
from octavo.sampling.columns import IntArray
from octavo.structured.answer import Answer
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.crew import Crew
from octavo.structured.group import Group
from octavo.structured.thinking import Thinking

#: rows of one grammar before it is compiled once more, for another thread
LANE_ROWS = 4


class ConstrainedRows:
    """Owner of the answers. compiler: given before the first row that has a grammar. rows: those that have one, or a
    budget of thoughts."""

    def __init__(self, num_threads: int | None = None) -> None:
        """num_threads: most that work at once; by default one a core."""
        self.compiler: GrammarCompiler | None = None
        self.rows: dict[int, Answer] = {}
        #: how often a row has got an answer, or lost it
        self.num_changes = 0
        self._crew = Crew(num_threads or num_cores())
        self._lanes: dict[str, list[int]] = {}  # by grammar: how many rows each of its compiled ones has
        self._last: Group | None = None
        self._among: tuple[list[int], tuple[list[int], list[int], list[int]]] | None = None
        self._made: IntArray = np.zeros((0, 0), np.int32)
        #: masks that were made for a group's answers of these lengths as soon as they were read
        self._ahead: tuple[Group, list[int], IntArray] | None = None

    def enter(self, new: NewRow) -> None:
        """A sequence with a grammar, or a budget of thoughts, enters a row."""
        self._enter(
            new.row,
            new.grammar,
            thinking=None if new.thoughts is None else Thinking(new.thoughts),
            # a forced token has no log-probability: the model was not asked
            may_force=not new.sampling_params.reports_logprobs,
            ignores_ends=new.sampling_params.ignore_eos,
            start=new.num_prompt_tokens,
        )

    def fork(self, row: int, parent: int) -> None:
        """A sequence enters a row with its parent's tokens. Its own matcher reads them when it is first needed."""
        of = self.rows[parent]
        given: dict[str, Any] = {name: getattr(of, name) for name in ("thinking", "may_force", "ignores_ends", "start")}
        self._enter(row, of.grammar, **given)

    def leave(self, rows: Sequence[int]) -> None:
        for row in rows:
            if (answer := self.rows.pop(row, None)) is None:
                continue
            self._last = self._among = None
            self.num_changes += 1
            if answer.grammar is not None:
                lanes = self._lanes[answer.grammar]
                lanes[answer.lane] -= 1
                if not any(lanes):
                    del self._lanes[answer.grammar]

    def among(self, rows: list[int]) -> tuple[list[int], list[int], list[int]]:
        """Of these rows those that have answers: their places, they themselves, and how many of their tokens are
        prompt. Mostly these are the rows of the step before."""
        if self._among is None or self._among[0] != rows:
            places = [place for place, row in enumerate(rows) if row in self.rows]
            found = [rows[place] for place in places]
            self._among = list(rows), (places, found, [self.rows[row].start for row in found])
        return self._among[1]

    def masks(self, rows: Sequence[int], outputs: Sequence[IntArray]) -> IntArray:
        """What each of N rows may draw after its output so far: [N, words]. A row that has guesses comes several
        times, with longer outputs."""
        made = self.made_ahead(list(rows), [len(output) for output in outputs])
        if made is None or self._last is None or not self._last.has_read(outputs):
            made = self.memory(len(rows))
            self.fill(made, rows, outputs)
        return made

    def fill(self, made: IntArray, rows: Sequence[int], outputs: Sequence[IntArray]) -> None:
        """Write the same masks into memory that is there."""
        self._ahead = None
        if len(set(rows)) == len(rows):
            self._group(rows).fill(made, outputs, self._crew)
            return
        reading: dict[int, Answer] = {}
        for place, (row, output) in enumerate(zip(rows, outputs, strict=True)):
            answer = reading.get(row)
            if answer is None:
                answer = self.rows[row]
            elif answer is self.rows[row]:  # which then reads no guesses, and need not take them back
                answer = answer.copy()
            reading[row] = answer
            self._group_of([row], [answer], are_drawn=False).fill(made[place : place + 1], [output], self._crew)

    def made_ahead(self, rows: list[int], lens: list[int]) -> IntArray | None:
        """The masks that `following` has made, if these rows had answers of these lengths then."""
        ahead, self._ahead = self._ahead, None
        is_same = ahead is not None and ahead[0] is self._last and ahead[0].rows == rows and ahead[1] == lens
        return ahead[2] if ahead is not None and is_same else None

    def following(
        self,
        rows: Sequence[int],
        outputs: Sequence[IntArray],
        rooms: Sequence[int],
        memory: Callable[[int], IntArray] | None = None,
    ) -> list[list[int]]:
        """The tokens that must follow each row's output, as many as it has room for, and END_OF_GRAMMAR behind the last
        one of all. memory: for masks, if they are to be made as soon as the outputs are read, while what that takes is
        in the caches. They also tell where nothing must follow."""
        group, self._ahead = self._group(rows), None
        if not (group.read(outputs) and group.is_plain):
            return group.following(outputs, rooms, range(len(outputs)))
        if memory is None:
            return group.following(outputs, rooms, group.not_open())
        made = memory(len(outputs))
        narrow = group.fill_plain(made, self._crew)
        self._ahead = group, [len(output) for output in outputs], made
        return group.following(outputs, rooms, narrow)

    def memory(self, num_masks: int) -> IntArray:
        """Memory for masks, the same for each step."""
        if len(self._made) < num_masks:
            assert self.compiler is not None, "rows have grammars"
            self._made = np.empty((num_masks, self.compiler.vocabulary.num_words), np.int32)
        return self._made[:num_masks]

    def _enter(self, row: int, grammar: str | None, **given: Any) -> None:
        self.leave([row])
        self.num_changes += 1
        self._among = None
        if grammar is None:
            self.rows[row] = Answer(None, None, 0, **given)
            return
        assert self.compiler is not None, "the engine gives the compiler before the first such plan"
        lanes = self._lanes.setdefault(grammar, [0])
        if min(lanes) >= LANE_ROWS and len(lanes) < self._crew.num_threads:
            lanes.append(0)
        lane = lanes.index(min(lanes))
        lanes[lane] += 1
        self.rows[row] = Answer(grammar, partial(self.compiler.matcher, grammar, lane), lane, **given)

    def _group(self, rows: Sequence[int]) -> Group:
        """The answers of these rows, which mostly are those of the step before."""
        if self._last is None or self._last.rows != rows:
            self._last = self._group_of(list(rows), [self.rows[row] for row in rows])
        return self._last

    def _group_of(self, rows: list[int], answers: list[Answer], *, are_drawn: bool = True) -> Group:
        end_ids: Sequence[int] = ()
        new = {(answer.grammar, answer.lane) for answer in answers if answer.grammar is not None and not answer.matcher}
        if self.compiler is not None:
            self.compiler.compile_all(new)
            end_ids = self.compiler.vocabulary.end_ids
        return Group(rows, answers, end_ids, are_drawn=are_drawn)
