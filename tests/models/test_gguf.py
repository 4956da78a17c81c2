"""The GGUF reader: against the gguf package on good files, and with clear errors on bad ones."""

from __future__ import annotations

import struct
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.models.gguf import GGUFFile, read_gguf
from octavo.models.packaged import locate_packaged_model
from tests.models.gguf_files import TINY_LLAMA, tiny_llama_tensors, write_gguf

STRING, ARRAY, UINT32 = 8, 9, 4


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = TINY_LLAMA | {"numbers": [1, -2, 3], "flag": True, "text": "Grüße"}
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(path, "llama", metadata, tiny_llama_tensors() | {"q": (np.ones((4, 64), np.float32), "Q8_0")})


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, value_type: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", value_type) + value


def tensor(name: str, shape: list[int], type_id: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_id, offset)


def raw_gguf(keys: list[bytes], tensors: list[bytes], data_bytes: int = 0, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data_bytes)


def test_reads_what_the_gguf_package_reads(tiny_file: Path) -> None:
    ours, theirs = read_gguf(tiny_file), gguf.GGUFReader(tiny_file)
    for field in theirs.fields.values():
        if field.name.startswith("GGUF."):
            continue
        value = ours.metadata[field.name]
        plain = value.tolist() if hasattr(value, "tolist") else value
        assert plain == pytest.approx(field.contents()), field.name
    assert list(ours.tensors) == [info.name for info in theirs.tensors]
    for info in theirs.tensors:
        mine = ours.tensors[info.name]
        assert mine.dtype == info.tensor_type.name
        assert mine.shape == tuple(reversed(info.shape.tolist()))
        assert np.array_equal(mine.data, info.data.reshape(-1).view(np.uint8))


def test_every_value_type_is_read() -> None:
    kinds = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "uint64", "int64", "float64"]
    type_ids = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12]
    keys = [key(kind, type_id, np.ones(1, kind).tobytes()) for kind, type_id in zip(kinds, type_ids, strict=True)]
    keys += [
        key(f"{kind}s", ARRAY, struct.pack("<IQ", type_id, 2) + np.ones(2, kind).tobytes())
        for kind, type_id in zip(kinds, type_ids, strict=True)
    ]
    nested = struct.pack("<IQ", ARRAY, 2) + 2 * (struct.pack("<IQ", STRING, 1) + string("x"))
    empty = struct.pack("<IQ", UINT32, 0)
    metadata = parse(raw_gguf([*keys, key("nested", ARRAY, nested), key("empty", ARRAY, empty)], [])).metadata
    for kind in kinds:
        assert metadata[kind] == 1
        assert metadata[f"{kind}s"].tolist() == [1, 1]
    assert [strings.tolist() for strings in metadata["nested"]] == [["x"], ["x"]]
    assert len(metadata["empty"]) == 0


def test_a_string_is_found_without_decoding() -> None:
    inner = struct.pack("<Q", 1) + b"b"  # a string whose bytes look like the array's own
    strings = [b"a", b"xx" + inner, b"b", b"", b"b"]
    keys = [key("k", ARRAY, struct.pack("<IQ", STRING, len(strings)) + b"".join(map(string, strings)))]
    array = parse(raw_gguf(keys, [])).metadata["k"]
    assert [array.index(text) for text in ("a", "b", "", "c", "xx")] == [0, 2, 3, None, None]


def test_a_float32_reads_as_the_decimal_it_was_written_from(tiny_file: Path) -> None:
    assert read_gguf(tiny_file).metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-5


def test_another_alignment_is_honoured(tmp_path: Path) -> None:
    values = {"a": np.arange(3, dtype=np.float32), "b": np.arange(5, dtype=np.float32)}
    file = read_gguf(write_gguf(tmp_path / "aligned.gguf", "llama", {}, values, alignment=256))
    assert np.array_equal(file.tensors["b"].data.view(np.float32), values["b"])


@pytest.mark.parametrize(("name", "limit_s", "num_tokens"), [("smollm2", 0.06, 49_152), ("gemma3-270m", 0.5, 262_144)])
def test_packaged_files_open_fast(name: str, limit_s: float, num_tokens: int) -> None:
    path = locate_packaged_model(name)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        file = read_gguf(path)
        seconds.append(time.process_time() - start)
    assert len(file.metadata["tokenizer.ggml.tokens"].tolist()) == num_tokens
    assert min(seconds) < limit_s


def parse(content: bytes) -> GGUFFile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.gguf"
        path.write_bytes(content)
        return read_gguf(path)


HUGE = 2**63 - 1
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "no magic": (b"ggml" + bytes(60), "not a GGUF file"),
    "cut header": (b"GGUF\x03\x00\x00\x00\x01", "cut off"),
    "too many keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE) + bytes(64), "promises"),
    "too many tensors": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0) + bytes(64), "promises"),
    "long key": (raw_gguf([struct.pack("<Q", HUGE) + bytes(64)], []), "name of"),
    "long string": (raw_gguf([key("k", STRING, struct.pack("<Q", HUGE))], [], 64), "'k' is cut off"),
    "not UTF-8": (raw_gguf([key("k", STRING, string(b"\xff\xfe"))], []), "'k' is not UTF-8"),
    "unknown value type": (raw_gguf([key("k", 13, bytes(8))], []), "value type 13"),
    "long numbers": (raw_gguf([key("k", ARRAY, struct.pack("<IQ", UINT32, HUGE))], [], 64), "'k' is cut off"),
    "many strings": (raw_gguf([key("k", ARRAY, struct.pack("<IQ", STRING, HUGE))], [], 64), "'k' promises"),
    "cut strings": (
        raw_gguf([key("k", ARRAY, struct.pack("<IQQ", STRING, 2, HUGE))], [], 64),
        "'k' is cut off inside an array of 2 strings",
    ),
    "deep arrays": (raw_gguf([key("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 6 + bytes(64))], []), "nests arrays"),
    "key twice": (raw_gguf([key("k", 0, b"1"), key("k", 0, b"1")], []), "'k' appears twice"),
    "alignment": (raw_gguf([key("general.alignment", UINT32, struct.pack("<I", 3))], []), "powers of two"),
    "tensor twice": (raw_gguf([], [tensor("t", [8]), tensor("t", [8], offset=32)], 64), "'t' appears twice"),
    "no dimensions": (raw_gguf([], [tensor("t", [])], 64), "0 dimensions"),
    "empty shape": (raw_gguf([], [tensor("t", [4, 0])], 64), "empty shape"),
    "huge shape": (raw_gguf([], [tensor("t", [HUGE, HUGE, HUGE])], 64), "'t' is cut off"),
    "unknown type": (raw_gguf([], [tensor("t", [8], type_id=99)], 64), "unknown type 99"),
    "half a block": (raw_gguf([], [tensor("t", [40], type_id=8)], 64), "blocks of 32"),
    "misaligned": (raw_gguf([], [tensor("t", [8], offset=4)], 64), "multiple of the alignment"),
    "overlap": (raw_gguf([], [tensor("t", [16]), tensor("u", [16], offset=32)], 96), "'u' .* overlaps"),
    "cut data": (raw_gguf([], [tensor("t", [16])], 32), "'t' is cut off"),
    "far offset": (raw_gguf([], [tensor("t", [8], offset=2**63)], 64), "'t' is cut off"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_an_error_that_names_file_and_place(case: str, tmp_path: Path) -> None:
    content, message = BROKEN[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=f"(?s)broken.gguf.*{message}"):
        read_gguf(path)


def test_a_broken_token_is_named_when_the_vocabulary_is_read() -> None:
    strings = struct.pack("<IQ", STRING, 2) + string("fine") + string(b"\xff")
    with pytest.raises(ModelLoadError, match=r"'k'\[1\] is not UTF-8"):
        parse(raw_gguf([key("k", ARRAY, strings)], [])).metadata["k"].tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (raw_gguf([], [], version=1), "version 1"),
        (raw_gguf([], [], version=3 << 24), "big-endian"),
        (
            raw_gguf([], [tensor("t", [256], type_id=10)], 96),
            "'t' has type Q2_K; Octavo reads F32.*: take another",
        ),
    ],
)
def test_what_is_well_formed_but_not_supported_says_so(content: bytes, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse(content)


def read_all(path: Path) -> None:
    """Open a file and touch everything in it."""
    file = read_gguf(path)
    for value in file.metadata.values():
        if hasattr(value, "tolist"):
            value.tolist()
    for stored in file.tensors.values():
        int(stored.data[-1])


def test_a_file_cut_anywhere_is_an_error(tiny_file: Path, tmp_path: Path) -> None:
    content, path = tiny_file.read_bytes(), tmp_path / "cut.gguf"
    for size in [*range(0, 3000, 7), *range(3000, len(content) - 32, 997)]:
        path.write_bytes(content[:size])
        with pytest.raises(ModelLoadError):
            read_all(path)


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2600), st.integers(0, 255)), min_size=1, max_size=12))
def test_changed_bytes_never_do_more_than_raise(
    tiny_file: Path, tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    content: Any = bytearray(tiny_file.read_bytes())
    for position, byte in changes:
        content[position] = byte
    path = tmp_path / "changed.gguf"
    path.write_bytes(content)
    with suppress(ModelLoadError):
        read_all(path)
