"""A tokenizer's vocabulary, as grammars need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.errors import InvalidRequestError
from octavo.structured.vocabulary import Vocabulary
from octavo.text.tokenizer import Tokenizer


def grammar_vocabulary(tokenizer: Tokenizer, size: int, end_ids: Sequence[int]) -> Vocabulary:
    """size, end_ids: the model's. Takes a tenth of a second."""
    if not (ends := [one for one in end_ids if one < size]):
        raise InvalidRequestError(
            "structured_outputs is set, but the model has no end token, so no answer could end: leave it out"
        )
    token_bytes = [tokenizer.token_bytes(token_id) for token_id in range(min(tokenizer.vocab_size, size))]
    return Vocabulary(token_bytes, tokenizer.all_special_ids, ends, size, _PlainEncode(tokenizer))


@dataclass(frozen=True, slots=True)
class _PlainEncode:
    tokenizer: Tokenizer

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)
