"""AskedGrammars: the grammars that requests ask for, checked where the text is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octavo.errors import InvalidRequestError
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.grammar import grammar_text
from octavo.structured.vocabulary import Vocabulary
from octavo.structured_outputs import StructuredOutputsParams
from octavo.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class AskedGrammars:
    """has_text: whether there is a tokenizer, without which the users of this engine send and read tokens alone."""

    compiler: GrammarCompiler
    has_text: bool

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        end_ids: Sequence[int],
        open_another: Callable[[], Tokenizer | None] | None = None,
    ) -> AskedGrammars:
        """vocab_size, end_ids: the model's. open_another: an engine whose front ends make the text opens a tokenizer
        for grammars, when the first one comes."""

        def read_vocabulary() -> Vocabulary:
            chosen = tokenizer if tokenizer is not None or open_another is None else open_another()
            assert chosen is not None, "grammars are refused without a tokenizer"
            return grammar_vocabulary(chosen, vocab_size, end_ids)

        return cls(GrammarCompiler(read_vocabulary), tokenizer is not None)

    def read(self, asked: StructuredOutputsParams) -> str:
        """The text of the grammar, which can be compiled. Raises InvalidRequestError."""
        if not self.has_text:
            raise InvalidRequestError("structured_outputs need a tokenizer, but skip_tokenizer_init=True: unset one")
        text = grammar_text(asked)
        self.compiler.matcher(text)
        return text


def grammar_vocabulary(tokenizer: Tokenizer, size: int, end_ids: Sequence[int]) -> Vocabulary:
    """A tokenizer's vocabulary, as grammars need it. size, end_ids: the model's. Takes a tenth of a second."""
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
