"""A lower bound of a text's token count, from its bytes: a prompt that cannot fit is refused before it is tokenised.

A text has at least bytes / longest token tokens. This holds where it is known what the tokenizer drops: bytes without
a token, white space beside special tokens, bytes saved by Unicode normal forms. Other tokenizers have no bound.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from octavo.text.detokenizer import byte_alphabet

#: the largest factor by which each normaliser shrinks a text in bytes. Composing forms merge up to four characters into
#: one, and compatibility forms turn up to four bytes into one.
_SHRINKS = {"Prepend": 1, "NFC": 4, "NFD": 4, "NFKC": 8, "NFKD": 8, "Lowercase": 3, "ByteLevel": 1}
#: normalisers that merge no characters
_KEEPS_BYTES = frozenset({"Prepend", "ByteLevel"})
#: pre-tokenizers that split text and drop nothing but white space
_CUTS = frozenset({"ByteLevel", "Metaspace", "Digits", "Split", "Punctuation", "UnicodeScripts"})
_CUTS_AT_SPACE = frozenset({"Whitespace", "WhitespaceSplit", "BertPreTokenizer"})


@dataclass(frozen=True, slots=True)
class TextBounds:
    """bytes_per_token: the most bytes that a token covers. keeps_space: white space becomes tokens, too.
    lost: bytes that become none."""

    bytes_per_token: int
    keeps_space: bool
    lost: bytes = b""

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the text's token count."""
        if not self.keeps_space:
            text = "".join(text.split())
        data = text.encode("utf-8", "surrogatepass").translate(None, self.lost)
        return -(-len(data) // self.bytes_per_token)


def text_bounds(encoder: Tokenizer) -> TextBounds | None:
    """None for a tokenizer that may drop parts of a text."""
    normalizers = _parts(encoder.normalizer, "normalizers")
    cuts = _parts(encoder.pre_tokenizer, "pretokenizers")
    lost = _lost_bytes(encoder, normalizers, cuts)
    if lost is None or (lost and any(part["type"] not in _KEEPS_BYTES for part in normalizers)):
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
    return TextBounds(longest * shrink, keeps_space, lost) if longest * shrink else None


def _longest_token(encoder: Tokenizer) -> int:
    """In bytes, as the vocabulary writes it, which is never shorter than the text it covers; 0 if ids have gaps, since
    some tokens are then unknown. One by one: reading the whole vocabulary at once would hold the GIL."""
    longest = 0
    for token_id in range(encoder.get_vocab_size()):
        token = encoder.id_to_token(token_id)
        if token is None:
            return 0
        longest = max(longest, len(token.encode()))
    return longest


def _parts(part: Any, of_sequence: str) -> list[dict[str, Any]]:
    """A normaliser or pre-tokenizer as a list of its steps."""
    if part is None:
        return []
    spec = json.loads(part.__getstate__())
    return list(spec[of_sequence]) if spec["type"] == "Sequence" else [spec]


def _replace_shrink(part: dict[str, Any]) -> int:
    """0 if the effect on a text's length is unknown."""
    old, new = part["pattern"].get("String"), part["content"]
    if not old or not new:
        return 0
    return -(-len(old.encode()) // len(new.encode()))


def _lost_bytes(encoder: Tokenizer, normalizers: list[dict[str, Any]], cuts: list[dict[str, Any]]) -> bytes | None:
    """The bytes without a token of their own, which are dropped; None if any number of bytes or characters can become
    one unknown token, or nothing."""
    if any(part["type"] == "ByteLevel" for part in (*normalizers, *cuts)):
        return bytes(byte for one, byte in byte_alphabet().items() if encoder.token_to_id(one) is None)
    falls_back = getattr(encoder.model, "byte_fallback", False)
    if falls_back and all(encoder.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256)):
        return b""
    return None
