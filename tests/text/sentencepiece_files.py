"""SentencePiece models for tests, written field by field as the format has it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

#: as Llama 2: a piece and its score; kinds as in sentencepiece_model.py
BYTES = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
LLAMA = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *BYTES]
WORDS = [("▁a", -1.0, 1), ("ab", -2.0, 1), ("▁ab", -3.0, 1), ("▁", -4.0, 1), ("a", -5.0, 1), ("b", -6.0, 1)]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def field(number: int, value: int | float | bytes | str) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def model_bytes(
    pieces: Iterable[tuple[str, float, int]],
    *,
    kind: int = 2,
    trainer: dict[int, int] | None = None,
    normalizer: dict[int, int | bytes] | None = None,
) -> bytes:
    """kind: 1 unigram, 2 byte-pair encoding. trainer, normalizer: more of their fields by number."""
    listed = b"".join(field(1, field(1, text) + field(2, score) + field(3, type_)) for text, score, type_ in pieces)
    trained = b"".join(field(number, value) for number, value in {3: kind, **(trainer or {})}.items())
    rules = b"".join(field(number, value) for number, value in {1: b"identity", 4: 0, **(normalizer or {})}.items())
    return listed + field(2, trained) + field(3, rules)


def write_model(folder: Path, content: bytes | None = None) -> Path:
    (folder / "tokenizer.model").write_bytes(model_bytes([*LLAMA, *WORDS]) if content is None else content)
    return folder
