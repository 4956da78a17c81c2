"""Answer: one row's matcher, and how much of the row's output it has read.

output     <think> Easy. </think> {"name": "Ada
read                              {"name": "A        the matcher takes what is new, and gives back what is gone
forced                            {"name": "         what must come next, whatever the model says
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from octavo.messages import END_OF_GRAMMAR
from octavo.observe.logging import LOGGER
from octavo.sampling.columns import IntArray
from octavo.structured.thinking import Thinking

if TYPE_CHECKING:
    from llguidance import LLMatcher

TOKEN_SIZE = np.dtype(np.int32).itemsize
NOTHING: list[int] = []


@dataclass(slots=True, eq=False)
class Answer:
    """Owner of the matcher. An answer is the output behind the thoughts, if there are any.

    grammar: its text. begin: makes a matcher of it. Both are None where only thoughts are limited. lane: of the answers
    that share a compiled grammar. ignores_ends: end tokens come only where nothing else may. start: how many of the
    row's tokens are prompt. matcher: None until it is needed. read, given: bytes of arrays of tokens, which are
    compared faster: what the matcher has taken, and what it was asked to take.
    """

    grammar: str | None
    begin: Callable[[], LLMatcher] | None
    lane: int
    thinking: Thinking | None
    may_force: bool
    ignores_ends: bool
    start: int
    matcher: LLMatcher | None = None
    read: bytes = field(default=b"", init=False)
    given: bytes = field(default=b"", init=False)
    has_said_why: bool = field(default=False, init=False)

    @property
    def fits(self) -> bool:
        """Whether the grammar takes all of the answer that was given."""
        return len(self.read) == len(self.given)

    def copy(self) -> Answer:
        made = replace(self, matcher=None if self.matcher is None else self.matcher.deep_copy())
        made.read = self.read if made.matcher is not None else b""
        return made

    def ready(self) -> LLMatcher:
        """The matcher, which is made when it is first needed: a device computes the prompt meanwhile."""
        if self.matcher is None:
            assert self.begin is not None, "the row has a grammar"
            self.matcher = self.begin()
        return self.matcher

    def begin_again(self) -> LLMatcher:
        """A matcher that has read nothing, in place of one that was given a token that does not fit."""
        self.matcher, self.read = None, b""
        return self.ready()

    def thinks(self, output: IntArray) -> bool:
        """Whether the sequence is at its thoughts, where anything may come."""
        return self.thinking is not None and self.thinking.answer_start(output) is None

    def follow(self, output: IntArray) -> None:
        """Read an output, which is not in the thoughts, up to its end or the first token that does not fit."""
        matcher = self.ready()
        if self.thinking is not None:
            output = output[self.thinking.answer_start(output) or 0 :]
        self.given = output.tobytes()
        if not self.given.startswith(self.read):
            self._take_back(matcher, output)
        if new := output[len(self.read) // TOKEN_SIZE :].tolist():
            num_taken = matcher.try_consume_tokens(new)
            self.read = self.given[: len(self.read) + num_taken * TOKEN_SIZE]

    def following(self, output: IntArray, room: int) -> list[int]:
        """What must follow an output, which has been read if it is not in the thoughts: tokens, `room` at most, and
        END_OF_GRAMMAR behind the last one of all."""
        if self.thinking is not None:
            if closing := self.thinking.forced(output, room):
                return closing
            if self.thinks(output) or self.thinking.may_begin(output) is not None:
                return NOTHING
        matcher, tokens = self.matcher, NOTHING
        if matcher is None or len(self.read) < len(self.given):
            return NOTHING
        if self.may_force and room > 0 and (found := matcher.compute_ff_tokens()):
            tokens = found[: matcher.validate_tokens(found[:room])]
            self.follow(np.append(output, np.array(tokens, np.int32)))
        if matcher.is_stopped():
            if not matcher.is_error():
                return [*tokens, END_OF_GRAMMAR]
            self.say_why()
        return tokens

    def say_why(self) -> None:
        """The grammar has become too complex to follow."""
        if self.matcher is not None and not self.has_said_why:
            self.has_said_why = True
            LOGGER.warning("structured output ends its request: %s", self.matcher.get_error()[:300])

    def _take_back(self, matcher: LLMatcher, output: IntArray) -> None:
        """Of the tokens that were read, those that the output does not begin with."""
        read = np.frombuffer(self.read, output.dtype)
        num = min(len(read), len(output))
        differ = read[:num] != output[:num]
        num_kept = int(differ.argmax()) if differ.any() else num
        matcher.rollback(len(read) - num_kept)
        # It keeps the last mask, and knows it again by the number of its lexemes: that must not be one of another text.
        matcher.compute_bitmask()
        self.read = self.read[: num_kept * TOKEN_SIZE]
