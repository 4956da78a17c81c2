"""What the `tokenizers` library raises, as an error of ours that names the file.

It has no error class of its own: a broken file is an Exception of any kind, and where its Rust code panics a
PanicException, which is no Exception at all and would end a process that guards itself against errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from octavo.errors import OctavoError, TokenizerError
from octavo.shown import cut


@contextmanager
def naming(problem: str, cure: str) -> Iterator[None]:
    """problem: what is wrong if the work inside fails, and with which file. cure: what to do then."""
    try:
        yield
    except OctavoError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise TokenizerError(f"{problem} ({cut(str(error))}); {cure}") from error


@contextmanager
def no_panic() -> Iterator[None]:
    """For one request's text: its failure is its own."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error) and type(error) is not Exception:  # it has no class of its own
            raise
        raise TokenizerError(f"the tokenizer's library failed on this text: {cut(str(error))}") from error


def is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"
