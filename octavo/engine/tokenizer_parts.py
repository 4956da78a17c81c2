"""What a Tokenizer is put together from, whichever files it comes from."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tokenizers import Tokenizer, processors

from octavo.errors import OctavoError


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


def library_fault(error: BaseException) -> str | None:
    """What the library says went wrong in it; None for an error that is not its own. It has no class of errors, and
    where its program breaks down it raises what is not even an Exception."""
    is_panic = type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"
    return str(error) if is_panic or type(error) is Exception else None


@contextmanager
def library_errors(make: Callable[[str], OctavoError]) -> Iterator[None]:
    """Whatever goes wrong inside, in one of Octavo's errors, made from what the library says."""
    try:
        yield
    except OctavoError:
        raise
    except BaseException as error:
        problem = str(error) if isinstance(error, Exception) else library_fault(error)
        if problem is None:
            raise
        raise make(problem) from error


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection inside: walking hundreds of thousands of new tuples takes longer than making them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
