"""Token ids to text, one at a time, losing nothing.

A token is not a piece of text: a character may be spread over several tokens, and some are never completed.
A stream holds back what later tokens may still change and gives out the rest, so that the pieces joined are
what decoding all ids at once gives, for any ids. Each push costs one look-up and its own few bytes.

    byte-level     tokens are bytes: a UTF-8 decoder that remembers a broken character's start
    byte fallback  tokens are text, but for <0x00> .. <0xFF>: a run of these is held until it ends, because
                   it is text only if the whole run is valid UTF-8

Neither puts anything between two tokens, so special ones that are shown stand side by side, as they were written.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer

from octavo.errors import TokenizerError


class TextStream(Protocol):
    """One sequence's text. After `finish` the stream is used up."""

    def push(self, token_id: int) -> str:
        """The text that this token settles, often "" or more than its own."""

    def finish(self) -> str:
        """What was held back."""


class Detokenizer:
    """Makes streams for one tokenizer; the streams share what it learns about tokens."""

    def __init__(self, encoder: Tokenizer) -> None:
        decoder = encoder.decoder
        spec = None if decoder is None else json.loads(decoder.__getstate__())
        self._make_stream = _stream_maker(spec, _Vocabulary(encoder))

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        return self._make_stream(skip_special_tokens)


class _Vocabulary:
    """Token by id, and which are special, asked of the library once each."""

    def __init__(self, encoder: Tokenizer) -> None:
        self._encoder = encoder
        self._special = {token_id for token_id, token in encoder.get_added_tokens_decoder().items() if token.special}

    def token(self, token_id: int, skip_special_tokens: bool) -> str | None:
        """None for a token without text: special and skipped, or an id past the vocabulary."""
        if skip_special_tokens and token_id in self._special:
            return None
        return self._encoder.id_to_token(token_id)


class _TokenTable(dict[int, Any]):
    """What a token contributes to the text, made when it is first met."""

    def __init__(self, vocabulary: _Vocabulary, skip_special_tokens: bool, make: Callable[[str | None], Any]) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self._skip_special_tokens = skip_special_tokens
        self._make = make

    def __missing__(self, token_id: int) -> Any:
        token = self._vocabulary.token(token_id, self._skip_special_tokens)
        self[token_id] = contribution = self._make(token)
        return contribution


def _stream_maker(spec: dict[str, Any] | None, vocabulary: _Vocabulary) -> Callable[[bool], TextStream]:
    steps = [] if spec is None else spec.get("decoders", [spec])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level_maker(vocabulary)
    text_steps = _TextSteps.parse(steps)
    if text_steps is None:
        raise TokenizerError(
            f"the tokenizer's decoder is {' + '.join(kinds) or 'missing'}, which Octavo cannot stream; known are "
            "ByteLevel, Metaspace, and Replace + ByteFallback + Fuse + Strip; or set skip_tokenizer_init"
        )
    return _text_maker(vocabulary, text_steps)


def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes bytes as printable characters: itself where it is one, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _byte_level_maker(vocabulary: _Vocabulary) -> Callable[[bool], TextStream]:
    alphabet = byte_alphabet()

    def token_bytes(token: str | None) -> bytes:
        if token is None:
            return b""
        if all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
        return token.encode()  # an added token in plain text

    tables = {skip: _TokenTable(vocabulary, skip, token_bytes) for skip in (False, True)}
    return lambda skip_special_tokens: _ByteLevelStream(tables[skip_special_tokens])


class _ByteLevelStream:
    def __init__(self, table: _TokenTable) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._table[token_id])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True, slots=True)
class _TextSteps:
    """A text decoder: characters to replace in each token, whether byte tokens are joined, what is cut off the
    front. drop_first: the first token loses its space marks altogether (Metaspace)."""

    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip: str = ""
    strip_len: int = 0
    drop_first: str = ""

    @classmethod
    def parse(cls, steps: list[dict[str, Any]]) -> _TextSteps | None:
        """None for a decoder that is not of this kind."""
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

    def text(self, token: str) -> str:
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token


_STEP_LETTERS = {"Replace": "R", "ByteFallback": "B", "Fuse": "F", "Strip": "S", "Metaspace": "M"}
_BYTE_TOKEN = re.compile(r"<0x([0-9a-fA-F]{2})>")


def _text_maker(vocabulary: _Vocabulary, steps: _TextSteps) -> Callable[[bool], TextStream]:
    def contribution(token: str | None) -> str | int | None:
        """Text, or a byte's value, or None for nothing."""
        match = _BYTE_TOKEN.fullmatch(token) if token is not None and steps.byte_fallback else None
        return int(match[1], 16) if match else token

    tables = {skip: _TokenTable(vocabulary, skip, contribution) for skip in (False, True)}
    return lambda skip_special_tokens: _TextStream(tables[skip_special_tokens], steps)


class _TextStream:
    def __init__(self, table: _TokenTable, steps: _TextSteps) -> None:
        self._table = table
        self._steps = steps
        self._run = bytearray()
        self._strip_left = steps.strip_len
        self._is_first = True

    def push(self, token_id: int) -> str:
        contribution = self._table[token_id]
        if contribution is None:
            return ""
        if isinstance(contribution, int):
            self._run.append(contribution)
            return ""
        if self._is_first and self._steps.drop_first:
            contribution = contribution.replace(self._steps.drop_first, "")
        self._is_first = False
        return self._strip(self._end_run() + self._steps.text(contribution))

    def finish(self) -> str:
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        """A run of bytes is text if all of it is, else one replacement character a byte."""
        if not self._run:
            return ""
        run, self._run = bytes(self._run), bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(run)

    def _strip(self, text: str) -> str:
        """Cut the text's very beginning, however it is spread over pieces."""
        while self._strip_left and text:
            if text[0] != self._steps.strip:
                self._strip_left = 0
                break
            text = text[1:]
            self._strip_left -= 1
        return text
