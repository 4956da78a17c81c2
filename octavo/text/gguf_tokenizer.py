"""The tokenizer inside a GGUF file, built for the `tokenizers` library.

tokenizer.ggml.model   "gpt2"    byte-level BPE: tokens, merges, and a named way to cut text before merging
                       "llama"   SentencePiece BPE: tokens and scores, bytes for characters it lacks
tokenizer.ggml.token_type   of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models

from octavo.errors import TokenizerError
from octavo.models.gguf import GGUFFile
from octavo.models.gguf_values import StringArray
from octavo.observe.logging import LOGGER
from octavo.shown import shown
from octavo.text.sentencepiece_model import CONTROL, NORMAL, USER_DEFINED
from octavo.text.sentencepiece_tokenizer import Pieces, bpe_encoder, write_spaces
from octavo.text.text_cuts import WHOLE_WORDS_FIRST, cut_of_kind, cutter, known_cuts, text_normalizer
from octavo.text.tokenizer_parts import TokenizerParts, collector_off, naming, set_ends

_NO_CUT = "default"
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def tokenizer_from_gguf(file: GGUFFile) -> TokenizerParts:
    vocabulary = GGUFVocabulary(file)
    with naming(f"{file.path}: tokenizer.ggml.tokens are not valid", "pass tokenizer= a folder with a tokenizer.json"):
        with collector_off():
            encoder = _build(vocabulary)
        _mark_special(encoder, vocabulary)
        _add_ends(encoder, vocabulary)
    special_tokens = {f"{role}_token": vocabulary.token(key) for role, key in _ROLES.items()}
    return TokenizerParts(
        encoder,
        {role: token for role, token in special_tokens.items() if token is not None},
        vocabulary.chat_templates(),
    )


def _build(vocabulary: GGUFVocabulary) -> Tokenizer:
    if vocabulary.kind == "gpt2":
        return _byte_level(vocabulary)
    if vocabulary.kind == "llama":
        return _sentencepiece(vocabulary)
    raise vocabulary.broken("model", f"is {shown(vocabulary.kind)}; Octavo reads 'gpt2' and 'llama'")


def _byte_level(vocabulary: GGUFVocabulary) -> Tokenizer:
    pre_tokenizer = cutter(vocabulary.cut)
    if pre_tokenizer is None:
        raise vocabulary.broken("pre", f"is {shown(vocabulary.cut)}; Octavo knows {', '.join(known_cuts())}")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids(),
            merges=vocabulary.merges(),
            ignore_merges=vocabulary.cut in WHOLE_WORDS_FIRST,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if (normalizer := text_normalizer(vocabulary.cut)) is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def _sentencepiece(vocabulary: GGUFVocabulary) -> Tokenizer:
    encoder = bpe_encoder(
        Pieces(
            tokens=vocabulary.tokens,
            scores=vocabulary.scores(),
            types=vocabulary.types,
            unknown=vocabulary.token("unknown"),
            raw=vocabulary.raw_tokens.raw,
        )
    )
    write_spaces(encoder, "always" if vocabulary.flag("add_space_prefix", True) else "never")
    return encoder


def _mark_special(tokenizer: Tokenizer, vocabulary: GGUFVocabulary) -> None:
    """Control and user-defined tokens are found in text before anything else; only the former are special."""
    for token_type, special in ((CONTROL, True), (USER_DEFINED, False)):
        ids = np.flatnonzero(vocabulary.types == token_type).tolist()
        texts = [vocabulary.tokens[token_id] for token_id in ids]
        tokenizer.add_tokens(
            [
                AddedToken(text, special=special, normalized=False, rstrip=vocabulary.swallows_space_after(text))
                for text in texts
                if text
            ]
        )


def _add_ends(tokenizer: Tokenizer, vocabulary: GGUFVocabulary) -> None:
    """Add the begin and end tokens that the model expects around a text."""
    adds_bos = vocabulary.flag("add_bos_token", vocabulary.kind == "llama" or vocabulary.cut in WHOLE_WORDS_FIRST)
    bos = vocabulary.token("bos") if adds_bos else None
    eos = vocabulary.token("eos") if vocabulary.flag("add_eos_token", False) else None
    if bos or eos:
        set_ends(tokenizer, bos, eos)


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
        """The name of the rule that splits text into words; files of early 2024 lack it, or say "default"."""
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
        """Whether this special token absorbs the white space after it, as in Phi-3's own tokenizer."""
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
            raise self.broken(key, "is missing or not a list of strings")
        return value

    def _numbers(self, key: str, default: int) -> NDArray[Any]:
        """One number per token."""
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return np.full(len(self.tokens), default)
        if not isinstance(value, np.ndarray) or len(value) != len(self.tokens):
            raise self.broken(key, f"must hold one number for each of {len(self.tokens)} tokens")
        return value
