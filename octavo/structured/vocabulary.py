"""Vocabulary: the bytes of each token, by which a grammar knows which tokens may come next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLTokenizer

#: texts of which a grammar often allows all: their tokens are then allowed at once, and not looked at one by one. The
#: library has such for what is in a JSON string; these are for free text of one line, and of any
FREE_TEXTS = (".+", "(?s:.+)")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """token_bytes: by id; empty for ids that no text has. special_ids: tokens that are not text. end_ids: those that
    end an answer. size: the model's, which may be larger. encode: the tokens of a text, without special ones."""

    token_bytes: Sequence[bytes]
    special_ids: Sequence[int]
    end_ids: Sequence[int]
    size: int
    encode: Callable[[str], list[int]]

    @property
    def num_words(self) -> int:
        """Of a mask, which has a bit for each token."""
        return -(-self.size // 32)

    def tokenizer(self) -> LLTokenizer:
        """The library's form of it; takes tenths of a second."""
        from llguidance import LLTokenizer

        own = [*LLTokenizer.general_slices(), *FREE_TEXTS]
        return LLTokenizer(_Wrapped(self), eos_token=list(self.end_ids), slices=own)  # type: ignore[arg-type]


class _Wrapped:
    """What the library asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.end_ids[0]
        own = list(vocabulary.token_bytes[: vocabulary.size])
        self.tokens = own + [b""] * (vocabulary.size - len(own))
        self.special_token_ids = [one for one in vocabulary.special_ids if one < vocabulary.size]
        self._encode = vocabulary.encode

    def __call__(self, text: str) -> list[int]:
        try:
            return self._encode(text)
        except Exception:  # the library cannot pass it on; it then spells the text with the longest tokens
            return []
