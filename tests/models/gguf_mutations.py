"""GGUF files with a key, a tensor or some bytes changed, drawn from a seed.

The header is parsed without the package's reader or ours, so that changes can be ones that neither would write.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from tests.models.mutations import mutated_bytes

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
#: Under the architecture's name: keys that few files have.
_RARE_KEYS = (
    *(b"attention.scale", b"attn_logit_softcapping", b"final_logit_softcapping", b"expert_count"),
    *(b"attention.sliding_window_pattern", b"rope.freq_base_swa", b"rope.scaling.attn_factor", b"vocab_size"),
)
_NUMBERS = (0, 1, 2, 3, 7, 31, 33, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -1.0, 1e-38, 1e38, float("nan"), float("inf"), float("-inf"), 1.0, 3.5)


@dataclass
class _Key:
    name: bytes
    kind: int
    value: bytes


@dataclass
class _Tensor:
    name: bytes
    dims: list[int]
    kind: int
    offset: int


def mutated_gguf(rng: random.Random, content: bytes, prefix: str) -> bytes:
    """prefix: of the keys to change; with an empty one tensors are changed, too."""
    keys, tensors, end = _taken_apart(content)
    if rng.random() < 0.1:
        return mutated_bytes(rng, content[:end]) + content[end:]
    for _ in range(rng.choice((1, 1, 2))):
        if prefix or rng.random() < 0.6:
            _change_key(rng, keys, prefix.encode())
        else:
            _change_tensor(rng, tensors)
    changed = _put_together(keys, tensors, content[end:])
    return changed[: rng.randrange(len(changed))] if rng.random() < 0.03 else changed


def _change_key(rng: random.Random, keys: list[_Key], prefix: bytes) -> None:
    key = rng.choice([key for key in keys if key.name.startswith(prefix)])
    kind = rng.random()
    if kind < 0.07 and not prefix:
        architecture = next((key.value[8:] for key in keys if key.name == b"general.architecture"), b"llama")
        keys.append(_Key(architecture + b"." + rng.choice(_RARE_KEYS), *_hostile(rng)))
    elif kind < 0.1:
        keys.remove(key)
    elif kind < 0.15:
        keys.append(_Key(key.name, key.kind, key.value))
    elif kind < 0.2:
        key.name = rng.choice((b"", key.name + b"x", b"\xff", rng.choice(keys).name))
    elif kind < 0.7:
        key.kind, key.value = _hostile(rng)
    elif kind < 0.85 and key.kind == _ARRAY and len(key.value) > 12:
        key.value = _changed_array(rng, key.value)
    elif key.kind in _FORMATS:
        key.value = _scalar(rng, key.kind)
    else:
        key.kind = rng.choice((*_FORMATS, _STRING, _ARRAY, 13, 2**32 - 1))


def _hostile(rng: random.Random) -> tuple[int, bytes]:
    kind = rng.choice((*_FORMATS, _STRING, _STRING, _ARRAY, _ARRAY))
    if kind == _STRING:
        return kind, _string(rng.choice((b"", b"4", b"\xff\xfe", b"x" * 3000, b"yarn", b"linear", "é".encode())))
    return (kind, _scalar(rng, kind)) if kind in _FORMATS else (kind, _array(rng, 0))


def _scalar(rng: random.Random, kind: int) -> bytes:
    if kind == 7:
        return bytes([rng.choice((0, 1, 2, 255))])
    if kind in (6, 12):
        return struct.pack(f"<{_FORMATS[kind]}", rng.choice(_FLOATS) if kind == 12 else _narrow(rng))
    size = struct.calcsize(_FORMATS[kind])
    return (rng.choice(_NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")


def _narrow(rng: random.Random) -> float:
    return rng.choice([value for value in _FLOATS if abs(value) != 1e38])


def _array(rng: random.Random, depth: int) -> bytes:
    count = rng.choice((0, 1, 2, 3, 10, 260))
    kind = rng.choice((*_FORMATS, _STRING, _ARRAY))
    claimed = rng.choice((count, count, count, count + 1, 2**63))
    head = struct.pack("<IQ", kind, claimed)
    if kind == _ARRAY:
        return head + b"".join(_array(rng, depth + 1) for _ in range(min(count, 2))) if depth < 6 else head
    if kind == _STRING:
        return head + b"".join(_string(rng.choice((b"", b"a", b"a b", b"\xff", b"a b c"))) for _ in range(count))
    return head + b"".join(_scalar(rng, kind) for _ in range(count))


def _changed_array(rng: random.Random, value: bytes) -> bytes:
    kind, count = struct.unpack_from("<IQ", value)
    if rng.random() < 0.5:
        return struct.pack("<IQ", kind, rng.choice((0, 1, max(count - 1, 0), count + 1))) + value[12:]
    changed = bytearray(value)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(12, len(changed))] = rng.choice((0, 1, 3, 0x20, 0x61, 0xFF))
    return bytes(changed)


def _change_tensor(rng: random.Random, tensors: list[_Tensor]) -> None:
    tensor, other = rng.choice(tensors), rng.choice(tensors)
    kind = rng.randrange(7)
    if kind == 0:
        tensor.name = rng.choice((b"", b"extra.weight", b"\xff", other.name, b"rope_freqs.weight", b"output.weight"))
    elif kind == 1:
        tensor.dims = rng.choice(
            ([], [0], [1] * 5, [2**63], [2**32, 2**32], tensor.dims[::-1], tensor.dims[:-1], [*tensor.dims, 1])
        )
    elif kind == 2:
        tensor.kind = rng.choice((0, 1, 2, 3, 8, 12, 14, 24, 30, 39, 99, 2**32 - 1))
    elif kind == 3:
        tensor.offset = rng.choice((0, 1, 32, other.offset, other.offset + 32, 2**40, 2**64 - 32))
    elif kind == 4:
        tensors.remove(tensor)
    elif kind == 5:
        tensors.append(_Tensor(tensor.name, tensor.dims, tensor.kind, tensor.offset))
    else:
        tensor.dims, other.dims = other.dims, tensor.dims


def _taken_apart(content: bytes) -> tuple[list[_Key], list[_Tensor], int]:
    num_tensors, num_keys = struct.unpack_from("<QQ", content, 8)
    at = 24
    keys, tensors = [], []
    for _ in range(num_keys):
        name, at = _read_string(content, at)
        (kind,) = struct.unpack_from("<I", content, at)
        end = _end_of(content, at + 4, kind)
        keys.append(_Key(name, kind, content[at + 4 : end]))
        at = end
    for _ in range(num_tensors):
        name, at = _read_string(content, at)
        (num_dims,) = struct.unpack_from("<I", content, at)
        *dims, tensor_kind, offset = struct.unpack_from(f"<{num_dims}QIQ", content, at + 4)
        tensors.append(_Tensor(name, list(dims), tensor_kind, offset))
        at += 4 + 8 * num_dims + 12
    return keys, tensors, -(-at // 32) * 32


def _put_together(keys: list[_Key], tensors: list[_Tensor], data: bytes) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key in keys:
        head += _string(key.name) + struct.pack("<I", key.kind) + key.value
    for tensor in tensors:
        head += _string(tensor.name)
        head += struct.pack(f"<I{len(tensor.dims)}QIQ", len(tensor.dims), *tensor.dims, tensor.kind, tensor.offset)
    return head + bytes(-len(head) % 32) + data


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _read_string(content: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", content, at)
    return content[at + 8 : at + 8 + length], at + 8 + length


def _end_of(content: bytes, at: int, kind: int) -> int:
    if kind in _FORMATS:
        return at + struct.calcsize(_FORMATS[kind])
    if kind == _STRING:
        return _read_string(content, at)[1]
    item, count = struct.unpack_from("<IQ", content, at)
    at += 12
    if item in _FORMATS:
        return at + count * struct.calcsize(_FORMATS[item])
    for _ in range(count):
        at = _end_of(content, at, item)
    return at
