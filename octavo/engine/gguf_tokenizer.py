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
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from octavo.engine.sentencepiece_merges import cached_merge_pairs
from octavo.engine.tokenizer_parts import TokenizerParts, collector_off, set_ends
from octavo.errors import TokenizerError
from octavo.models.gguf import GGUFFile, StringArray

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_THREE_DIGITS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}"
_ONE_DIGIT = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION_AND_SPACE}"

#: tokenizer.ggml.pre -> how text is cut: GPT-2's own expression, the same after single digits, or another one.
_GPT2_CUTS = ("default", "gpt-2", "phi-2", "olmo", "jais", "mpt")
_DIGIT_CUTS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
_REGEX_CUTS = {
    "llama-bpe": _THREE_DIGITS,
    "llama3": _THREE_DIGITS,
    "llama-v3": _THREE_DIGITS,
    "dbrx": _THREE_DIGITS,
    "smaug-bpe": _THREE_DIGITS,
    "qwen2": _ONE_DIGIT,
    "deepseek-r1-qwen": _ONE_DIGIT,
}
#: Tokenizers that take a word that is in the vocabulary as it is, whatever the merges say.
_WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3")


class GGUFVocabulary:
    """Typed access to the tokenizer's metadata."""

    def __init__(self, file: GGUFFile) -> None:
        self._path = file.path
        self._metadata: Mapping[str, Any] = file.metadata
        self.kind = str(self._metadata.get("tokenizer.ggml.model", "none"))
        self.cut = str(self._metadata.get("tokenizer.ggml.pre", "default"))
        self.raw_tokens = self._strings("tokens")
        self.tokens = self.raw_tokens.tolist()
        self.types = self._numbers("token_type", _NORMAL)

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
            raise self.broken(key, f"is {value!r}, allowed are true and false")
        return value

    def token_id(self, key: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is not None and (not isinstance(value, int) or not 0 <= value < len(self.tokens)):
            raise self.broken(f"{key}_token_id", f"is {value!r}, allowed are 0 to {len(self.tokens) - 1}")
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


def tokenizer_from_gguf(file: GGUFFile) -> TokenizerParts:
    with collector_off():
        vocabulary = GGUFVocabulary(file)
        builder = _BUILDERS.get(vocabulary.kind)
        if builder is None:
            raise vocabulary.broken("model", f"is {vocabulary.kind!r}; Octavo reads {' and '.join(_BUILDERS)}")
        encoder = builder(vocabulary)
    _mark_special(encoder, vocabulary)
    _add_ends(encoder, vocabulary)
    special_tokens = {f"{role}_token": vocabulary.token(key) for role, key in _ROLES.items()}
    return TokenizerParts(
        encoder,
        {role: token for role, token in special_tokens.items() if token is not None},
        vocabulary.chat_templates(),
    )


def _byte_level(vocabulary: GGUFVocabulary) -> Tokenizer:
    vocab = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    whole_words = vocabulary.cut in _WHOLE_WORDS_FIRST
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=vocabulary.merges(), ignore_merges=whole_words))
    except Exception as error:  # the library has no error class of its own
        raise vocabulary.broken("merges", f"does not fit the tokens ({error})") from error
    tokenizer.pre_tokenizer = _cutter(vocabulary)
    tokenizer.decoder = decoders.ByteLevel()
    if vocabulary.cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _cutter(vocabulary: GGUFVocabulary) -> pre_tokenizers.PreTokenizer:
    by_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if vocabulary.cut in _GPT2_CUTS:
        return by_gpt2
    if vocabulary.cut in _DIGIT_CUTS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_gpt2])
    if vocabulary.cut in _REGEX_CUTS:
        split = pre_tokenizers.Split(Regex(_REGEX_CUTS[vocabulary.cut]), behavior="isolated")
        return pre_tokenizers.Sequence([split, to_bytes])
    known = ", ".join(sorted((*_GPT2_CUTS, *_DIGIT_CUTS, *_REGEX_CUTS)))
    raise vocabulary.broken("pre", f"is {vocabulary.cut!r}; Octavo knows {known}")


def _sentencepiece(vocabulary: GGUFVocabulary) -> Tokenizer:
    tokens = vocabulary.tokens
    pairs = cached_merge_pairs(tokens, vocabulary.scores(), vocabulary.types == _NORMAL, vocabulary.raw_tokens.raw)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=dict(zip(tokens, range(len(tokens)), strict=True)),
            merges=[(tokens[left], tokens[right]) for left, right in pairs.tolist()],
            unk_token=vocabulary.token("unknown"),
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    space = normalizers.Replace(" ", "▁")
    restore: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.flag("add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
        restore.append(decoders.Strip(content=" ", left=1, right=0))
    else:
        tokenizer.normalizer = space
    tokenizer.decoder = decoders.Sequence(restore)
    return tokenizer


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _mark_special(tokenizer: Tokenizer, vocabulary: GGUFVocabulary) -> None:
    """Control and user-defined tokens are found in text before anything else; only the former are special."""
    for token_type, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        ids = np.flatnonzero(vocabulary.types == token_type).tolist()
        texts = [vocabulary.tokens[token_id] for token_id in ids]
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts if text])


def _add_ends(tokenizer: Tokenizer, vocabulary: GGUFVocabulary) -> None:
    """The begin and end tokens that this model wants around a text."""
    adds_bos = vocabulary.flag("add_bos_token", vocabulary.kind == "llama" or vocabulary.cut in _WHOLE_WORDS_FIRST)
    bos = vocabulary.token("bos") if adds_bos else None
    eos = vocabulary.token("eos") if vocabulary.flag("add_eos_token", False) else None
    if bos or eos:
        set_ends(tokenizer, bos, eos)
