"""Reader of SentencePiece's tokenizer.model: a vocabulary in a protocol buffer.

    ModelProto       1 pieces (one each) | 2 trainer | 3 normalizer
    SentencePiece    1 text | 2 score, float32 | 3 kind: see NORMAL and the others below
    TrainerSpec      3 model: 1 unigram, 2 byte-pair encoding | 35 byte fallback | 40 to 43 ids of unk, bos, eos, pad
    NormalizerSpec   2 precompiled character map | 3 space before a text | 4 spaces taken out

Each field is a number and a wire type in one varint, then its value: a varint (0), eight bytes (1), a length and that
many bytes (2), or four bytes (5). A file is not trusted: every length is checked against the remaining bytes, and any
fault raises TokenizerError with the path.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from octavo.errors import TokenizerError
from octavo.models.regular_file import read_regular

#: what a token is for: SentencePiece's kinds of pieces, and GGUF's tokenizer.ggml.token_type; 5 is unused
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_MAX_PIECES = 1 << 22
_UNIGRAM, _BPE = 1, 2
_LAST_KIND = 6
#: each role's field number, and its id where the file omits it
_IDS = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """tokens, scores, types: by id. roles: those of unk, bos, eos and pad that exist. raw: the whole file."""

    kind: Literal["unigram", "bpe"]
    tokens: list[str]
    scores: NDArray[np.float32]
    types: NDArray[np.int32]
    roles: Mapping[str, str]
    character_map: bytes
    adds_space_prefix: bool
    removes_extra_spaces: bool
    raw: memoryview

    @property
    def control(self) -> list[str]:
        return self._of_kind(CONTROL)

    @property
    def user_defined(self) -> list[str]:
        return self._of_kind(USER_DEFINED)

    def _of_kind(self, kind: int) -> list[str]:
        return [self.tokens[token_id] for token_id in np.flatnonzero(self.types == kind).tolist()]


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    return _Reader(path).model()


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = memoryview(read_regular(path))

    def model(self) -> SentencePieceModel:
        pieces: list[tuple[str, float, int]] = []
        trainer: dict[int, int | memoryview] = {}
        normalizer: dict[int, int | memoryview] = {}
        for number, value in self._fields(self._data):
            if number == 1:
                pieces.append(self._piece(value, len(pieces)))
            elif number == 2:
                trainer |= dict(self._fields(self._message(number, value)))
            elif number == 3:
                normalizer |= dict(self._fields(self._message(number, value)))
        if not pieces:
            self._fail("holds no pieces, so it is not a SentencePiece model")
        tokens = [text for text, _, _ in pieces]
        types = np.array([kind for _, _, kind in pieces], np.int32)
        return SentencePieceModel(
            kind=self._kind(trainer),
            tokens=tokens,
            scores=np.array([score for _, score, _ in pieces], np.float32),
            types=types,
            roles=self._roles(trainer, tokens, types),
            character_map=bytes(self._message(2, normalizer.get(2, memoryview(b"")))),
            adds_space_prefix=bool(self._number(normalizer, 3, 1)),
            removes_extra_spaces=bool(self._number(normalizer, 4, 1)),
            raw=self._data,
        )

    def _piece(self, value: int | memoryview, index: int) -> tuple[str, float, int]:
        if index >= _MAX_PIECES:
            self._fail(f"holds more than {_MAX_PIECES} pieces")
        fields = dict(self._fields(self._message(1, value)))
        try:
            text = str(self._message(1, fields.get(1, memoryview(b""))), "utf-8")
        except UnicodeDecodeError as error:
            self._fail(f"has piece {index}, which is not UTF-8: {error.reason}")
        kind = self._number(fields, 3, NORMAL)
        if not 1 <= kind <= _LAST_KIND:
            self._fail(f"has piece {index} of kind {kind}, allowed are 1 to {_LAST_KIND}")
        score = struct.unpack("<f", self._number(fields, 2, 0).to_bytes(8, "little", signed=True)[:4])[0]
        if not isfinite(score):
            self._fail(f"has piece {index} of score {score}, allowed are finite numbers")
        return text, score, kind

    def _kind(self, trainer: dict[int, int | memoryview]) -> Literal["unigram", "bpe"]:
        kind = self._number(trainer, 3, _UNIGRAM)
        if kind not in (_UNIGRAM, _BPE):
            self._fail(f"is a model of kind {kind}; Octavo reads {_UNIGRAM} (unigram) and {_BPE} (byte-pair encoding)")
        return "unigram" if kind == _UNIGRAM else "bpe"

    def _roles(
        self, trainer: dict[int, int | memoryview], tokens: list[str], types: NDArray[np.int32]
    ) -> dict[str, str]:
        ids = {role: self._number(trainer, number, default) for role, (number, default) in _IDS.items()}
        return {
            role: tokens[token_id]
            for role, token_id in ids.items()
            if 0 <= token_id < len(tokens) and types[token_id] in (CONTROL, UNKNOWN)
        }

    def _number(self, fields: Mapping[int, int | memoryview], number: int, default: int) -> int:
        value = fields.get(number, default)
        if not isinstance(value, int):
            self._fail(f"has bytes in field {number}, where a number belongs")
        return value - (1 << 64) if value >= 1 << 63 else value

    def _message(self, number: int, value: int | memoryview) -> memoryview:
        if isinstance(value, int):
            self._fail(f"has a number in field {number}, where bytes belong")
        return value

    def _fields(self, data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """Each field's number and value, in order."""
        position, size = 0, len(data)
        while position < size:
            key, position = self._varint(data, position)
            wire = key & 7
            if wire == 0:
                value, position = self._varint(data, position)
                yield key >> 3, value
                continue
            length = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                length, position = self._varint(data, position)
            elif not length:
                self._fail(f"has a field of wire type {wire}, so it is not a SentencePiece model")
            if length > size - position:
                self._fail(f"is cut off: {length} bytes are needed, {size - position} are left")
            raw = data[position : position + length]
            position += length
            yield key >> 3, raw if wire == 2 else int.from_bytes(raw, "little")

    def _varint(self, data: memoryview, position: int) -> tuple[int, int]:
        value = shift = 0
        try:
            while (byte := data[position]) & 0x80:
                value |= (byte & 0x7F) << shift
                shift += 7
                position += 1
                if shift > 63:
                    self._fail("holds a number of more than 64 bits, so it is not a SentencePiece model")
        except IndexError:
            self._fail("is cut off inside a number")
        return (value | byte << shift) & (1 << 64) - 1, position + 1

    def _fail(self, problem: str) -> NoReturn:
        raise TokenizerError(
            f"{self._path} {problem}; download it again, or pass tokenizer= a folder with a tokenizer.json"
        )
