"""The text that a model reads for calibration: its tokens as windows of equal length, spread over the whole of it.

By default it is what Python's standard library says of itself, the docstrings of its modules: English about
programs and some code, which is wherever Python is.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from octavo.errors import ConfigError
from octavo.kernels.arrays import IntArray
from octavo.text.tokenizer import Tokenizer

_SHORTEST_DOCSTRING = 200  # shorter ones are names of parameters, mostly


def packaged_text() -> str:
    found = "\n\n".join(_docstrings(Path(sysconfig.get_path("stdlib"))))
    if not found:
        raise ConfigError("this Python has no source of its standard library: name a text with --calibration")
    return found


def windows(tokenizer: Tokenizer, text: str, length: int, most: int) -> IntArray:
    """Up to `most` windows of `length` token ids, fewer of a short text, whose windows do not overlap. A token that the
    model expects at the begin of a text is in every window."""
    begin = [id for id in tokenizer.encode("")[:1] if id == tokenizer.bos_token_id]
    tokens = np.array(tokenizer.encode(text, add_special_tokens=False), np.int32)
    room = min(length - len(begin), len(tokens))
    if room < 1:
        raise ConfigError(
            f"the calibration text has {len(tokens)} tokens, of which a sample holds {length - len(begin)}: name a "
            "longer text with --calibration, or set --max-seq-length higher"
        )
    starts = np.linspace(0, len(tokens) - room, min(most, len(tokens) // room)).astype(np.int64)
    return np.array([[*begin, *tokens[start : start + room]] for start in starts], np.int32)


def _docstrings(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, ValueError, SyntaxError):  # some distributions keep files of other versions here
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
        yield from (text for text in texts if text is not None and len(text) >= _SHORTEST_DOCSTRING)
