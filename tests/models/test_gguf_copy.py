"""`octavo quantize` to GGUF: what it writes is read back by us and by the gguf package, with its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from octavo.cli.main import main  # noqa: E402
from octavo.cli.quantize import GGUF_KINDS as OFFERED  # noqa: E402
from octavo.config import ModelConfig  # noqa: E402
from octavo.kernels.reference.dequantize import dequantize  # noqa: E402
from octavo.models.gguf import read_gguf  # noqa: E402
from octavo.models.gguf_copy import GGUF_KINDS  # noqa: E402
from octavo.models.loader import open_checkpoint  # noqa: E402
from octavo.text.tokenizer import open_tokenizer  # noqa: E402
from tests.models.gguf_files import TINY_LLAMA, tiny_llama_tensors, write_gguf  # noqa: E402

TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3, 3, 1],
    "tokenizer.chat_template": "{{ messages }}",
    "general.name": "tiny",
    "general.file_type": 1,
    "general.tags": ["a", "b"],
    "llama.some_number": np.uint64(1 << 40),
    "llama.flags": [True, False],
}
EXPERTS = {"blk.1.ffn_gate_exps.weight": (3, 8, 32), "blk.1.ffn_gate_inp.weight": (3, 32), "blk.1.odd.weight": (4, 20)}


def written(folder: Path, alignment: int = 32, more: dict[str, Any] | None = None) -> Path:
    """A file with matrices in several types."""
    tensors: dict[str, Any] = {
        name: tensor.astype(np.float16) if "ffn" in name and tensor.ndim == 2 else tensor
        for name, tensor in tiny_llama_tensors().items()
    }
    tensors["blk.0.attn_v.weight"] = (tensors["blk.0.attn_v.weight"], "Q8_0")
    tensors["blk.0.attn_q.weight"] = (tensors["blk.0.attn_q.weight"], "BF16")
    return write_gguf(folder / "tiny.gguf", "llama", TINY_LLAMA | TOKENIZER, tensors | (more or {}), alignment)


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_blocks_and_metadata_are_read_back(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path, 64), tmp_path / "out.gguf"
    assert main(["quantize", str(path), str(out), "--scheme", kind, "--report", str(tmp_path / "report")]) == 0
    count = 13 if kind == "q8_0" else 14  # one of them is of that type already
    assert f"{count} matrices as GGUF ({kind.upper()})" in capsys.readouterr().out
    before, after = read_gguf(path), read_gguf(out)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    assert list(after.tensors) == list(before.tensors) == list(theirs)
    for name, tensor in after.tensors.items():
        outer = name in ("token_embd.weight", "output.weight")
        wanted = "F32" if len(tensor.shape) == 1 else "Q8_0" if outer else kind.upper()
        assert tensor.dtype == theirs[name].tensor_type.name == wanted
        numbers = dequantize(before.tensors[name])
        if wanted != "F32" and before.tensors[name].dtype != wanted:
            codes = gguf.quantize(numbers, gguf.GGMLQuantizationType[wanted])
            numbers = gguf.dequantize(codes, gguf.GGMLQuantizationType[wanted])
        np.testing.assert_array_equal(dequantize(tensor), numbers)
        np.testing.assert_array_equal(gguf.dequantize(theirs[name].data, theirs[name].tensor_type), numbers)
    fields, new = gguf.GGUFReader(path).fields, gguf.GGUFReader(out).fields
    assert new.keys() == fields.keys() | {"general.quantization_version"}
    for key in fields.keys() - {"general.file_type"}:
        if not key.startswith("GGUF."):
            assert (new[key].types, new[key].contents()) == (fields[key].types, fields[key].contents()), key
    assert gguf.LlamaFileType(after.metadata["general.file_type"]).name == f"MOSTLY_{kind.upper()}"
    assert after.metadata["general.quantization_version"] == gguf.GGML_QUANT_VERSION


def test_the_new_file_is_the_same_model(tmp_path: Path) -> None:
    path, out = written(tmp_path), tmp_path / "out.gguf"
    assert main(["quantize", str(path), str(out), "--scheme", "q8_0"]) == 0
    source, made = (open_checkpoint(ModelConfig(model=str(each))) for each in (path, out))
    assert made.architecture == source.architecture
    texts = []
    for checkpoint in (source, made):
        tokenizer = open_tokenizer(ModelConfig(model="tiny"), lambda found=checkpoint: found.tokenizer_source)  # type: ignore[misc]
        assert tokenizer is not None
        texts.append((tokenizer.encode("abba</s>"), tokenizer.bos_token_id))
    assert texts[0] == texts[1]


def test_experts_are_quantised_and_their_router_is_not(tmp_path: Path) -> None:
    from octavo.models.gguf_copy import GGUFCopy

    more = {name: np.ones(shape, np.float32) for name, shape in EXPERTS.items()}
    dtypes = GGUFCopy.of(str(written(tmp_path, more=more)), "q4_0").dtypes
    assert [dtypes[name] for name in EXPERTS] == ["Q4_0", "F32", "F32"]


def test_what_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = written(tmp_path), tmp_path / "out.gguf"

    def refusal(*words: object, target: object = out, source: object = path) -> str:
        scheme = [] if "--scheme" in words else ["--scheme", "q4_0"]
        assert main(["quantize", str(source), str(target), *scheme, *map(str, words)]) == 2
        return capsys.readouterr().err

    assert tuple(GGUF_KINDS) == OFFERED
    assert "name one that ends in .gguf" in refusal(target=tmp_path / "out")
    assert "but int8 makes a folder; GGUF has q8_0" in refusal("--scheme", "int8", "--no-calibration")
    for words in (["--group-size", 32], ["--dtype", "float32"], ["--calibration", path], ["--ignore", "down_proj"]):
        assert f"{words[0]} is given, but q4_0 is of GGUF" in refusal(*words)
    with monkeypatch.context() as patched:
        patched.setattr("octavo.cli.quantize.find_spec", lambda name: None)
        assert "pip install gguf" in refusal()
        patched.undo()
        patched.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        assert "GB are free, and the model takes" in refusal()
    infinite = np.full((64, 32), np.inf, np.float32)
    broken = write_gguf(
        tmp_path / "broken.gguf", "llama", TINY_LLAMA, tiny_llama_tensors() | {"blk.1.ffn_up.weight": infinite}
    )
    assert "'blk.1.ffn_up.weight' has numbers that are not finite" in refusal(source=broken)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["broken.gguf", "tiny.gguf"]
