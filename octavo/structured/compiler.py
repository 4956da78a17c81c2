"""GrammarCompiler: from a grammar's text to the matcher that follows it, once for equal texts, within limits.

A grammar may be a stranger's. Work is counted by the library while it compiles and at each step, and ends at a limit:
then this grammar is refused, or its request fails. Nothing depends on the clock, so all ranks decide alike.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.shown import cut
from octavo.structured.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

#: compiled grammars that are kept, and the characters of all their texts
MAX_KEPT, MAX_KEPT_SIZE = 128, 2**22


class GrammarCompiler:
    """Owner of the compiled grammars of one process. Any thread may call it; the library lets others run meanwhile."""

    def __init__(self, read: Callable[[], Vocabulary]) -> None:
        """read: makes the vocabulary, when the first grammar needs it."""
        self._read = read
        self._vocabulary: Vocabulary | None = None
        self._tokenizer: LLTokenizer | None = None
        self._limits: LLParserLimits | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._kept_size = 0
        self._making, self._keeping = threading.Lock(), threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it has the same vocabulary, and nothing compiled."""
        return GrammarCompiler, (_Known(self.vocabulary),)

    @property
    def vocabulary(self) -> Vocabulary:
        with self._making:
            if self._vocabulary is None:
                self._vocabulary = self._read()
            return self._vocabulary

    @property
    def is_ready(self) -> bool:
        """Whether the vocabulary has been read."""
        return self._vocabulary is not None

    def knows(self, text: str) -> bool:
        """Whether the grammar is there, so that `matcher` takes no time."""
        return text in self._kept

    def matcher(self, text: str) -> LLMatcher:
        """A matcher of its own, at the beginning of an answer. Raises InvalidRequestError."""
        with self._keeping:
            found = self._kept.get(text)
            if found is not None:
                self._kept.move_to_end(text)
        if found is None:
            found = self._compile(text)
            self._keep(text, found)
        return found.deep_copy()

    def _compile(self, text: str) -> LLMatcher:
        from llguidance import LLMatcher

        made = LLMatcher(self._library_tokenizer(), text, limits=self._limits, log_level=0)
        made.compute_bitmask()  # finds the rest of what is wrong
        if made.is_error():
            raise InvalidRequestError(f"structured_outputs cannot be compiled: {_reason(made.get_error())}")
        return made

    def _library_tokenizer(self) -> LLTokenizer:
        vocabulary = self.vocabulary
        with self._making:
            if self._tokenizer is None:
                self._tokenizer, self._limits = vocabulary.tokenizer(), _limits()
            return self._tokenizer

    def _keep(self, text: str, made: LLMatcher) -> None:
        with self._keeping:
            if text in self._kept:
                return
            self._kept[text] = made
            self._kept_size += len(text)
            while len(self._kept) > MAX_KEPT or (self._kept_size > MAX_KEPT_SIZE and len(self._kept) > 1):
                oldest, _ = self._kept.popitem(last=False)
                self._kept_size -= len(oldest)


class _Known:
    """Reads a vocabulary that is there."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def __call__(self) -> Vocabulary:
        return self._vocabulary


def _limits() -> LLParserLimits:
    """Bounds of time, in the library's units: 50,000 of the first take a millisecond, then 14,000 and 20,000. Of
    memory: a state of the lexer takes up to 2 kB."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _reason(error: str) -> str:
    return cut(error.removesuffix("<non-verbose/>").strip(), 600)
