"""The vocabulary in a GGUF file's metadata: tokens, what kind each is, merges or scores, and chat templates.

A file is not trusted: whatever is missing, of the wrong type or out of range raises TokenizerError with its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import TokenizerError
from octavo.models.gguf import GGUFFile, StringArray
from octavo.observe.logging import LOGGER
from octavo.shown import shown
from octavo.text.text_cuts import cut_of_kind

_NO_CUT = "default"

#: what a token is for: tokenizer.ggml.token_type, and SentencePiece's kinds of pieces; 5 is unused
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


class GGUFVocabulary:
    """Typed access to the tokenizer's metadata."""

    def __init__(self, file: GGUFFile) -> None:
        self._path = file.path
        self._metadata: Mapping[str, Any] = file.metadata
        self.kind = str(self._metadata.get("tokenizer.ggml.model", "none"))
        self._architecture = str(self._metadata.get("general.architecture"))
        self._is_phi3 = self._architecture == "phi3" and self.kind == "llama"
        self.raw_tokens = self._strings("tokens")
        self.tokens = self.raw_tokens.tolist()
        self.cut = self._cut() if self.kind == "gpt2" else ""
        self.types = self._numbers("token_type", NORMAL)

    def ids(self) -> dict[str, int]:
        return dict(zip(self.tokens, range(len(self.tokens)), strict=True))

    def _cut(self) -> str:
        """The name of the rule by which text is cut into words; files of early 2024 lack it, or say "default"."""
        name = str(self._metadata.get("tokenizer.ggml.pre", _NO_CUT))
        if name != _NO_CUT:
            return name
        chosen = cut_of_kind(self._architecture, len(self.tokens))
        LOGGER.warning(
            "%s does not say how its tokenizer cuts text (tokenizer.ggml.pre); taken for %r, %s; if answers are poor, "
            "convert the model again or pass tokenizer= a folder with a tokenizer.json",
            *(
                self._path,
                chosen or "gpt-2",
                f"as {self._architecture!r} models do" if chosen else "which may be wrong",
            ),
        )
        return chosen or "gpt-2"

    def swallows_space_after(self, token: str) -> bool:
        """Whether white space after this special token belongs to it, as Phi-3's own tokenizer has it."""
        return self._is_phi3 and token not in ("<unk>", "<s>", "<|endoftext|>")

    def merges(self) -> list[tuple[str, str]]:
        pairs = [tuple(merge.split(" ")) for merge in self._strings("merges").tolist()]
        if any(len(pair) != 2 for pair in pairs):
            raise self.broken("merges", "holds entries that are not two tokens with a space between")
        return pairs  # type: ignore[return-value]  # the lengths were just checked

    def scores(self) -> NDArray[np.float32]:
        return self._numbers("scores", 0).astype(np.float32)

    def flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            raise self.broken(key, f"is {shown(value)}, allowed are true and false")
        return value

    def token_id(self, key: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}_token_id")
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and (not is_number or not 0 <= value < len(self.tokens)):
            raise self.broken(f"{key}_token_id", f"is {shown(value)}, allowed are 0 to {len(self.tokens) - 1}")
        return value

    def token(self, key: str) -> str | None:
        token_id = self.token_id(key)
        return None if token_id is None else self.tokens[token_id]

    def chat_templates(self) -> dict[str, str]:
        prefix = "tokenizer.chat_template"
        named = {
            key.removeprefix(prefix).lstrip(".") or "default": value
            for key, value in self._metadata.items()
            if key == prefix or key.startswith(f"{prefix}.")
        }
        return {name: text for name, text in named.items() if isinstance(text, str)}

    def broken(self, key: str, problem: str) -> TokenizerError:
        return TokenizerError(
            f"{self._path}: tokenizer.ggml.{key} {problem}; pass tokenizer= a folder with a tokenizer.json"
        )

    def _strings(self, key: str) -> StringArray:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, StringArray) or not len(value):
            raise self.broken(key, "is missing or no list of strings")
        return value

    def _numbers(self, key: str, default: int) -> NDArray[Any]:
        """One number a token."""
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return np.full(len(self.tokens), default)
        if not isinstance(value, np.ndarray) or len(value) != len(self.tokens):
            raise self.broken(key, f"must hold one number for each of {len(self.tokens)} tokens")
        return value
