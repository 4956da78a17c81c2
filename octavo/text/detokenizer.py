"""Incremental detokenization: token ids to text, one token at a time.

A character may span several tokens, and some characters are never completed. A stream holds back text that later
tokens may still change. Its joined pieces equal the text of decoding all ids at once, for any ids. The cost of a push
is one table look-up, plus work on the token's own bytes.

    byte-level     tokens are bytes
    byte fallback  tokens are text, except <0x00> .. <0xFF>, which are bytes

A UTF-8 decoder keeps the start of an incomplete character; one that is never completed becomes U+FFFD.
(The `tokenizers` library decodes a run of byte tokens as a whole or not at all. A character would wait for the end of
the run, and one invalid byte would change the characters before it, which may be in the prompt. So this file decodes
complete sequences too.)

An answer continues its prompt: a stream created with the prompt starts after it, so the texts of prompt and answer join
to the text of both together, wherever they are split. An answer may therefore begin with a space, which a decoder
strips only at the start of a text, or with a character whose first bytes belong to the prompt.

Nothing is inserted between tokens, so special tokens that are shown stand side by side.
"""

from __future__ import annotations

import codecs
import copy
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer

from octavo.errors import TokenizerError


class TextStream(Protocol):
    """One sequence's text. Do not use the stream after `finish`."""

    def push(self, token_id: int) -> str:
        """The text that this token completes: often "", sometimes more than its own."""

    def finish(self) -> str:
        """The text still held back."""

    def copy(self) -> TextStream:
        """A copy that continues from the same state."""


class Detokenizer:
    """Creates streams for one tokenizer; they share its table of tokens."""

    def __init__(self, encoder: Tokenizer) -> None:
        decoder = encoder.decoder
        spec = None if decoder is None else json.loads(decoder.__getstate__())
        self._rules = _rules(spec)
        special = frozenset(i for i, token in encoder.get_added_tokens_decoder().items() if token.special)
        skipped = {False: frozenset[int](), True: special}
        self._tables = {skip: _TokenTable(encoder, ids, self._rules.contribution) for skip, ids in skipped.items()}

    def stream(self, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()) -> TextStream:
        table = self._tables[skip_special_tokens]
        stream = _Stream(table, self._rules)
        if prompt_token_ids:
            stream.read_prompt(prompt_token_ids)
        return stream

    def settled_text(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text without an incomplete last character, which later tokens complete."""
        push = self.stream(skip_special_tokens).push
        return "".join([push(token_id) for token_id in token_ids])

    def text(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        stream = self.stream(skip_special_tokens)
        return "".join([stream.push(token_id) for token_id in token_ids]) + stream.finish()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token, special or not, adds in the middle of a text."""
        contribution = self._tables[False][token_id]
        return contribution.encode() if isinstance(contribution, str) else contribution or b""


#: what a token adds in the middle of a text: bytes, characters, or None for nothing
_Contribution = bytes | str | None


class _TokenTable(dict[int, _Contribution]):
    """Each token's contribution to the text, computed on first use. skipped: ids of tokens that add none."""

    def __init__(self, encoder: Tokenizer, skipped: frozenset[int], make: Callable[[str], _Contribution]) -> None:
        super().__init__()
        self._encoder = encoder
        self._skipped = skipped
        self._make = make

    def token(self, token_id: int) -> str | None:
        """None for a skipped token and for an id outside the vocabulary."""
        return None if token_id in self._skipped else self._encoder.id_to_token(token_id)

    def __missing__(self, token_id: int) -> _Contribution:
        token = self.token(token_id)
        self[token_id] = contribution = None if token is None else self._make(token)
        return contribution


def _rules(spec: dict[str, Any] | None) -> _TextRules | _ByteLevelRules:
    steps = [] if spec is None else spec.get("decoders", [spec])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _ByteLevelRules()
    rules = _TextRules.parse(steps)
    if rules is None:
        raise TokenizerError(
            f"the tokenizer's decoder is {' + '.join(kinds) or 'missing'}, which Octavo cannot stream; known are "
            "ByteLevel, Metaspace, and Replace + ByteFallback + Fuse + Strip; or set skip_tokenizer_init"
        )
    return rules


def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: its own, or one from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_ALPHABET = byte_alphabet()
_BYTE_TOKEN = re.compile(r"<0x([0-9a-fA-F]{2})>")


class _ByteLevelRules:
    """A decoder for which every token is bytes."""

    strip = ""
    strip_len = 0
    drop_first = ""

    def contribution(self, token: str) -> bytes:
        if all(character in _BYTE_ALPHABET for character in token):
            return bytes(_BYTE_ALPHABET[character] for character in token)
        return token.encode()  # an added token in plain text

    def first_text(self, token: str) -> str:
        return token


@dataclass(frozen=True, slots=True)
class _TextRules:
    """A text decoder: replacements in each token, byte fallback, and characters stripped from the start of a text.
    drop_first: the first token loses all its space marks (Metaspace)."""

    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip: str = ""
    strip_len: int = 0
    drop_first: str = ""

    @classmethod
    def parse(cls, steps: list[dict[str, Any]]) -> _TextRules | None:
        """None for other decoders."""
        pattern = "".join(_STEP_LETTERS.get(step["type"], "?") for step in steps)
        if not re.fullmatch(r"R*B?(FS?)?|M", pattern) or not pattern:
            return None
        if pattern == "M":
            mark = steps[0]["replacement"]
            return cls(((mark, " "),), drop_first="" if steps[0].get("prepend_scheme") == "never" else mark)
        replaced = [(step["pattern"].get("String"), step["content"]) for step in steps if step["type"] == "Replace"]
        strip: dict[str, Any] = steps[-1] if "S" in pattern else {"content": "", "start": 0, "stop": 0}
        if any(pattern is None for pattern, _ in replaced) or strip["stop"]:
            return None
        return cls(tuple(replaced), "B" in pattern, strip["content"], strip["start"])

    def contribution(self, token: str) -> _Contribution:
        match = _BYTE_TOKEN.fullmatch(token) if self.byte_fallback else None
        return bytes((int(match[1], 16),)) if match else self._replaced(token)

    def first_text(self, token: str) -> str:
        """A token's text at the start of a text, before stripping."""
        return self._replaced(token.replace(self.drop_first, "") if self.drop_first else token)

    def _replaced(self, token: str) -> str:
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token


_STEP_LETTERS = {"Replace": "R", "ByteFallback": "B", "Fuse": "F", "Strip": "S", "Metaspace": "M"}
_LONGEST_START = 3  # bytes of an incomplete character


class _Stream:
    def __init__(self, table: _TokenTable, rules: _TextRules | _ByteLevelRules) -> None:
        self._table = table
        self._rules = rules
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_left = rules.strip_len
        self._drops_first = bool(rules.drop_first)

    def read_prompt(self, token_ids: Sequence[int]) -> None:
        """Reach the state that pushing all tokens would. Without their text, it is enough to push those at the start,
        until the text has begun, and those at the end."""
        num_read = 0
        while num_read < len(token_ids) and not self._has_begun:
            self.push(token_ids[num_read])
            num_read += 1
        self._read_end(token_ids, num_read)

    @property
    def _has_begun(self) -> bool:
        """Whether the text is past its stripped start."""
        return not self._strip_left and not self._drops_first

    def _read_end(self, token_ids: Sequence[int], first: int) -> None:
        """Continue after the last complete character, which ends before the last three bytes or with a text token."""
        end: list[int] = []
        num_bytes = 0
        for index in range(len(token_ids) - 1, first - 1, -1):
            contribution = self._table[token_ids[index]]
            if contribution is None:
                continue
            end.append(token_ids[index])
            num_bytes += len(contribution) if isinstance(contribution, bytes) else _LONGEST_START
            if num_bytes >= _LONGEST_START:
                self._decoder.reset()
                break
        for token_id in reversed(end):
            self.push(token_id)

    def push(self, token_id: int) -> str:
        contribution = self._table[token_id]
        if contribution is None:
            return ""
        if isinstance(contribution, bytes):
            text = self._decoder.decode(contribution)
        else:
            if self._drops_first:
                contribution = self._rules.first_text(self._table.token(token_id) or "")
                self._drops_first = False
            text = self._decoder.decode(b"", final=True) + contribution
        return self._strip(text) if self._strip_left else text

    def copy(self) -> _Stream:
        made = copy.copy(self)
        made._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        made._decoder.setstate(self._decoder.getstate())
        return made

    def finish(self) -> str:
        return self._strip(self._decoder.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        """Strip the start of the text, however the pieces split it."""
        while self._strip_left and text:
            if text[0] != self._rules.strip:
                self._strip_left = 0
                break
            text = text[1:]
            self._strip_left -= 1
        return text


class TokenTexts(dict[int, str]):
    """Token id -> its own text, computed on first use. Never larger than the vocabulary."""

    def __init__(self, make: Callable[[int], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, token_id: int) -> str:
        self[token_id] = text = self._make(token_id)
        return text


class TokenWidths(dict[int, int]):
    """Token id -> how many characters begin in it, computed on first use. Never larger than the vocabulary."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        super().__init__()
        self._token_bytes = token_bytes

    def __missing__(self, token_id: int) -> int:
        self[token_id] = width = sum(byte & 0xC0 != 0x80 for byte in self._token_bytes(token_id))  # UTF-8
        return width
