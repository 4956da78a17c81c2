"""How few tokens a text can have, told from its bytes: so that what can never fit is refused before it is tokenised.

A token stands for so many bytes at most, so a text has at least bytes / longest token of them. That is true where the
tokenizer loses nothing on the way: every byte is one of its tokens, and what it changes in the text before (Unicode's
normal forms, white space beside special tokens) shrinks it by a known factor. For any other tokenizer nothing is said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

#: what a normaliser may do to a text's bytes: it makes them fewer by this factor at most. The forms that compose
#: make one character of four at most, and compatible ones make one byte of four.
_SHRINKS = {"Prepend": 1, "NFC": 4, "NFD": 4, "NFKC": 8, "NFKD": 8, "Lowercase": 3, "ByteLevel": 1}
#: pre-tokenizers that cut, and drop nothing but white space
_CUTS = frozenset({"ByteLevel", "Metaspace", "Digits", "Split", "Punctuation", "UnicodeScripts"})
_CUTS_AT_SPACE = frozenset({"Whitespace", "WhitespaceSplit", "BertPreTokenizer"})


@dataclass(frozen=True, slots=True)
class TextBounds:
    """bytes_per_token: no token stands for more bytes of a text. keeps_space: white space makes tokens, too."""

    bytes_per_token: int
    keeps_space: bool

    def fewest_tokens(self, text: str) -> int:
        """So many tokens the text has at least."""
        if not self.keeps_space:
            text = "".join(text.split())
        return -(-len(text.encode("utf-8", "surrogatepass")) // self.bytes_per_token)


def text_bounds(encoder: Tokenizer) -> TextBounds | None:
    """None for a tokenizer that may lose some of a text."""
    normalizers = _parts(encoder.normalizer, "normalizers")
    cuts = _parts(encoder.pre_tokenizer, "pretokenizers")
    if not _has_every_byte(encoder, normalizers, cuts):
        return None
    shrink, keeps_space = 1, True
    for part in normalizers:
        kind = part["type"]
        if kind == "Strip":
            keeps_space = False
        elif kind == "Replace":
            shrink *= _replace_shrink(part)
        else:
            shrink *= _SHRINKS.get(kind, 0)
    for part in cuts:
        if part["type"] in _CUTS_AT_SPACE:
            keeps_space = False
        elif part["type"] not in _CUTS or part.get("behavior") == "Removed":
            return None
    added = encoder.get_added_tokens_decoder().values()
    keeps_space = keeps_space and not any(token.lstrip or token.rstrip for token in added)
    longest = _longest_token(encoder)
    return TextBounds(longest * shrink, keeps_space) if longest * shrink else None


def _longest_token(encoder: Tokenizer) -> int:
    """In bytes, as the vocabulary writes it, which is never shorter than what it stands for; 0 if ids have gaps, so
    that not all tokens can be gone through. One by one, since a whole vocabulary at once keeps the interpreter."""
    longest = 0
    for token_id in range(encoder.get_vocab_size()):
        token = encoder.id_to_token(token_id)
        if token is None:
            return 0
        longest = max(longest, len(token.encode()))
    return longest


def _parts(part: Any, of_sequence: str) -> list[dict[str, Any]]:
    """A normaliser or pre-tokenizer as the steps that it is made of."""
    if part is None:
        return []
    spec = json.loads(part.__getstate__())
    return list(spec[of_sequence]) if spec["type"] == "Sequence" else [spec]


def _replace_shrink(part: dict[str, Any]) -> int:
    """0 for one whose effect on a text's length is not known."""
    old, new = part["pattern"].get("String"), part["content"]
    if not old or not new:
        return 0
    return -(-len(old.encode()) // len(new.encode()))


def _has_every_byte(encoder: Tokenizer, normalizers: list[dict[str, Any]], cuts: list[dict[str, Any]]) -> bool:
    """Whether there is a token for every byte that stands alone, so that nothing becomes an unknown one."""
    if any(part["type"] == "ByteLevel" for part in (*normalizers, *cuts)):
        return all(encoder.token_to_id(character) is not None for character in pre_tokenizers.ByteLevel.alphabet())
    falls_back = getattr(encoder.model, "byte_fallback", False)
    return bool(falls_back) and all(encoder.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
