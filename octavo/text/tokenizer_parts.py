"""The parts of a Tokenizer, whichever files it comes from.

The `tokenizers` library has no error class of its own: a broken file raises any kind of Exception, and a panic in its
Rust code raises PanicException, which is not an Exception and escapes ordinary error handling.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tokenizers import Tokenizer, processors

from octavo.errors import OctavoError, TokenizerError
from octavo.shown import cut


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """special_tokens: by role, as chat templates know them: bos_token, eos_token, unk_token, pad_token.
    chat_templates: Jinja text by name; the one to use unless asked otherwise is "default"."""

    encoder: Tokenizer
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)


def set_ends(encoder: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Put bos before and eos after every encoded text; None puts nothing."""
    before, after = [bos] if bos else [], [eos] if eos else []
    encoder.post_processor = processors.TemplateProcessing(
        single=[*(f"{token}:0" for token in before), "$A:0", *(f"{token}:0" for token in after)],
        special_tokens=[(token, encoder.token_to_id(token)) for token in dict.fromkeys(before + after)],
    )


@contextmanager
def collector_off() -> Iterator[None]:
    """Pause garbage collection: scanning hundreds of thousands of new tuples takes longer than creating them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def naming(problem: str, cure: str) -> Iterator[None]:
    """Turn any failure inside into a TokenizerError. problem: the fault and its file. cure: what to change."""
    try:
        yield
    except OctavoError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise TokenizerError(f"{problem} ({cut(str(error))}); {cure}") from error


def is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"
