"""GrammarCompiler: from a grammar's text to the matcher that follows it, once for equal texts, within limits.

A grammar may be a stranger's. Work is counted by the library while it compiles and at each step, and ends at a limit:
then this grammar is refused, or its request fails. Nothing depends on the clock, so all ranks decide alike.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.observe.machine import num_cores
from octavo.shown import cut
from octavo.structured.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

#: compiled grammars that are kept, of which a text may have several, and the characters of their texts
MAX_KEPT, MAX_KEPT_SIZE = 128, 2**22
#: largest multipleOf of a schema, without its decimal point
MAX_MULTIPLE = 10_000
_MULTIPLE = re.compile(r'\\*"multipleOf\\*"\s*:\s*([-+.\dEe]+)')
_ESCAPED = re.compile(r"\\+u([\dA-Fa-f]{4})")


class GrammarCompiler:
    """Owner of the compiled grammars of one process. Any thread may call it; the library lets others run meanwhile."""

    def __init__(self, read: Callable[[], Vocabulary]) -> None:
        """read: makes the vocabulary, when the first grammar needs it."""
        self._read = read
        self._vocabulary: Vocabulary | None = None
        self._tokenizer: LLTokenizer | None = None
        self._limits: LLParserLimits | None = None
        self._kept: OrderedDict[str, dict[int, LLMatcher]] = OrderedDict()  # by lane
        self._num_kept = self._kept_size = 0
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

    def matcher(self, text: str, lane: int = 0) -> LLMatcher:
        """A matcher of its own, at the beginning of an answer. Those of one lane share a compiled grammar, and wait for
        each other. Raises InvalidRequestError."""
        with self._keeping:
            found = self._kept.get(text, {}).get(lane)
            if found is not None:
                self._kept.move_to_end(text)
        if found is None:
            found = self._compile(text)
            self._keep(text, lane, found)
        return found.deep_copy()

    def compile_all(self, wanted: Iterable[tuple[str, int]]) -> None:
        """Compile what is missing of these texts for these lanes, at the same time. Faults come from `matcher`."""
        missing = [(text, lane) for text, lane in wanted if lane not in self._kept.get(text, {})]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(len(missing), num_cores())) as threads:
                wait([threads.submit(self.matcher, text, lane) for text, lane in missing])

    def _compile(self, text: str) -> LLMatcher:
        from llguidance import LLMatcher

        _check_multiples(text)
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

    def _keep(self, text: str, lane: int, made: LLMatcher) -> None:
        with self._keeping:
            lanes = self._kept.setdefault(text, {})
            if lane in lanes:
                return
            lanes[lane] = made
            self._kept.move_to_end(text)
            self._num_kept += 1
            self._kept_size += len(text)
            while self._num_kept > MAX_KEPT or (self._kept_size > MAX_KEPT_SIZE and len(self._kept) > 1):
                oldest, dropped = self._kept.popitem(last=False)
                self._num_kept -= len(dropped)
                self._kept_size -= len(oldest) * len(dropped)


class _Known:
    """Reads a vocabulary that is there."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def __call__(self) -> Vocabulary:
        return self._vocabulary


def _check_multiples(text: str) -> None:
    """The library counts no work for remainders, of which some grammars make it visit each."""
    plain = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text) if "\\u" in text else text
    for number in _MULTIPLE.findall(plain):
        try:
            sign, digits, exponent = Decimal(number).as_tuple()
        except InvalidOperation:
            continue  # the library says what is wrong
        whole = int("".join(map(str, digits))) * 10 ** min(max(int(exponent), 0), 9)
        if sign or not 0 < whole <= MAX_MULTIPLE:
            raise InvalidRequestError(
                f"structured_outputs cannot be compiled: multipleOf is {number[:40]}, allowed are numbers above 0 "
                f"whose digits make {MAX_MULTIPLE} at most, such as 0.01 or 250"
            )


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


#: what the library says -> what to do about it
_ADVICE = {
    "NoExtensionBias": "no answer matches it: a $ref or a rule leads only back to itself, or a regex matches nothing; "
    "give it an end, or another alternative",
    "Unknown format:": "{}; allowed are date-time, date, time, duration, email, hostname, ipv4, ipv6, uri and uuid; "
    "leave the format out, or use a pattern",
    "Unimplemented keys:": "{}: leave them out, or say the same in other ones",
    "Resource '": "{}: a $ref may only lead to a place in the same schema, such as #/$defs/name",
}


def _reason(error: str) -> str:
    reason = cut(error.removesuffix("<non-verbose/>").strip(), 600)
    advice = next((text for begin, text in _ADVICE.items() if reason.startswith(begin)), "{}")
    return advice.replace("{}", reason)
