"""`octavo quantize`: what it writes is read back exactly, by us and by compressed-tensors' own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

from octavo.cli.main import main  # noqa: E402
from octavo.config import ModelConfig  # noqa: E402
from octavo.kernels.reference.dequantize import dequantize  # noqa: E402
from octavo.kernels.reference.scaled import dequantize_scaled  # noqa: E402
from octavo.kernels.scaled import ScaledTensor  # noqa: E402
from octavo.models.config_writer import config_of  # noqa: E402
from octavo.models.loader import open_checkpoint  # noqa: E402
from octavo.models.registry import build_model  # noqa: E402
from octavo.models.safetensors_writer import SafetensorsWriter  # noqa: E402
from octavo.models.weight_files import read_folder  # noqa: E402
from octavo.quantization.at_load import quantised  # noqa: E402
from tests.models.gguf_files import TINY_LLAMA, tiny_llama_tensors, write_gguf  # noqa: E402
from tests.models.test_calibration import WORDS  # noqa: E402
from tests.models.test_stacked_experts import parameters_by_name  # noqa: E402
from tests.quantization.folders import dense_model, folder_of, matrices, opened  # noqa: E402
from tests.tiny_models import TINY, make_tiny_model, with_tokenizer  # noqa: E402

KINDS = ("fp8", "int8", "int4", "int4+")
#: families without a config.json made from GGUF
UNSAID = ("opt", "glm4", "deepseek", "olmo", "granite", "gpt-oss")
WRITTEN = sorted(set(TINY) - {"gpt2"})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantized_copy")


def quantize(source: Path | str, target: Path, kind: str, *more: str) -> Path:
    """kind: a scheme; int4+: with zero points."""
    plain = [] if "--calibration" in more else ["--no-calibration"]
    asymmetric = ["--asymmetric"] if kind.endswith("+") else []
    assert main(["quantize", str(source), str(target), "--scheme", kind.rstrip("+"), *asymmetric, *plain, *more]) == 0
    return target


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["quantize", *map(str, words)]) == 2
    return capsys.readouterr().err.removeprefix("octavo: error: ").rstrip()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back_exactly(root: Path, tmp_path: Path, kind: str) -> None:
    source = dense_model(root)
    target = quantize(source, tmp_path / "out", kind)
    made = opened(target)
    dense, read = matrices(opened(source)), matrices(made)
    for name, part in read.items():
        compact = part.compact()
        assert isinstance(compact, ScaledTensor)
        expected = quantised(dequantize(dense[name].dense()), compact.format, "F32")
        np.testing.assert_array_equal(compact.codes, expected.codes)
        np.testing.assert_array_equal(compact.scales, expected.scales)
        assert (compact.zeros is None) == (kind != "int4+")
        np.testing.assert_array_equal(compact.zeros, expected.zeros)
    before, after = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    kept = [name for name in before if "_proj" not in name]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)

    assert not [name for name in made.leftovers() if "_proj" in name]


def test_groups_of_int4_divide_every_matrix(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = dense_model(root)  # with 64, 128 and 192 inputs
    sizes = {}
    for size, more in ((64, ()), (32, ("--group-size", "32"))):
        target = quantize(source, tmp_path / f"g{size}", "int4", *more)
        sizes[size] = {part.scheme.format.block for part in matrices(opened(target)).values() if part.scheme.format}
    assert sizes == {64: {(1, 64)}, 32: {(1, 32)}}
    shown = refusal(capsys, source, tmp_path / "no", "--scheme", "int4", "--group-size", "128")
    assert shown == "--group-size is 128, which does not suit matrices of 64, 128, 192 inputs: allowed are 64, 32"
    assert "fp8 has a scale for each output" in refusal(
        capsys, source, tmp_path / "no", "--scheme", "fp8", "--group-size", "32"
    )
    assert "int8 has no zero points" in refusal(capsys, source, tmp_path / "no", "--scheme", "int8", "--asymmetric")


@pytest.mark.parametrize("family", WRITTEN)
def test_every_family_is_written_under_its_own_names(root: Path, tmp_path: Path, family: str) -> None:
    source = make_tiny_model(family, root / "families" / family, num_hidden_layers=2, **_layers_of(family))
    checkpoint = opened(quantize(source, tmp_path / "out", "int8"))
    model = build_model(checkpoint.architecture, checkpoint, [(0, 0), (0, 1)], 64)
    assert len(model.layers) == 2
    assert not checkpoint.leftovers()
    assert "I8" in checkpoint.dtypes


def _layers_of(family: str) -> dict[str, Any]:
    return {"layer_types": ["sliding_attention", "full_attention"]} if family.startswith(("gemma", "gpt")) else {}


@pytest.mark.parametrize("family", [name for name in WRITTEN if not name.startswith(UNSAID)])
def test_an_architecture_is_written_as_the_configuration_it_was_read_from(root: Path, family: str) -> None:
    architecture = opened(make_tiny_model(family, root / "configs" / family)).architecture
    written = config_of(architecture, "float32")  # which reads it back itself
    assert written["hidden_size"] == architecture.hidden_size


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_gguf_file_becomes_a_folder(tmp_path: Path, kind: str) -> None:
    sizes = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": ["a b"]}
    template = {"tokenizer.chat_template": "{{ messages }}", "tokenizer.ggml.token_type": [1, 1, 1, 3, 3, 1]}
    tensors = {name: (tensor, "Q8_0") if tensor.ndim == 2 else tensor for name, tensor in tiny_llama_tensors().items()}
    path = write_gguf(tmp_path / "tiny.gguf", "llama", TINY_LLAMA | sizes | template, tensors)
    source, made = (
        open_checkpoint(ModelConfig(model=str(each)))
        for each in (path, quantize(path, tmp_path / "out", kind, "--dtype", "float32"))
    )
    assert made.architecture.eos_token_ids == source.architecture.eos_token_ids
    expected = {name: dequantize(source.take(name, tensor.shape).read()) for name, tensor in source.stored.items()}
    for name, part in matrices(made).items():
        compact = part.compact()
        assert isinstance(compact, ScaledTensor)
        wanted = dequantize_scaled(quantised(expected[name], compact.format, "F32"))
        np.testing.assert_array_equal(dequantize(part.dense()), wanted)
    embedding = made.stored["model.embed_tokens.weight"].read()
    np.testing.assert_array_equal(dequantize(embedding), expected["model.embed_tokens.weight"])
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_tensors_reads_the_same_numbers(root: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("compressed_tensors")
    import transformers

    target = quantize(dense_model(root), tmp_path / "out", kind)
    settings = transformers.CompressedTensorsConfig(dequantize=True)
    auto: Any = transformers.AutoModelForCausalLM
    theirs = dict(auto.from_pretrained(target, dtype=torch.float32, quantization_config=settings).named_parameters())
    for name, part in matrices(opened(target)).items():
        np.testing.assert_array_equal(theirs[name].detach().numpy(), dequantize(part.dense()))


def test_a_report_names_every_matrix(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize(dense_model(root), tmp_path / "out", "int8", "--report", str(tmp_path / "errors.json"))
    shown = capsys.readouterr().out
    assert "14 matrices as compressed-tensors (I8 per output)" in shown
    assert [line.split()[0] for line in shown.splitlines() if "%" in line][:3] == ["0", "1", "all"]
    errors = json.loads((tmp_path / "errors.json").read_text())["matrices"]
    assert len(errors) == 14
    assert all(0 < error < 0.02 for error in errors.values())


def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, scheme = dense_model(root), tmp_path / "out", ("--scheme", "int8", "--no-calibration")
    assert "which exists: choose a new name" in refusal(capsys, source, source, *scheme)
    assert "there is no folder" in refusal(capsys, source, tmp_path / "none" / "out", *scheme)
    shown = refusal(capsys, folder_of(root, "gptq") / "quantised", out, *scheme)
    assert "has no dense weights, it is quantised as gptq: name the dense model" in shown
    gpt2 = make_tiny_model("gpt2", root / "gpt2")
    assert "stores Linear modules, which not all of its matrices are" in refusal(capsys, gpt2, out, *scheme)
    narrow = make_tiny_model("llama", root / "narrow")
    assert "matrices of 48 inputs, which groups of 32" in refusal(capsys, narrow, out, "--scheme", "int4")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        assert "GB are free, and the model takes" in refusal(capsys, source, out, *scheme)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("inf")
    (tmp_path / "infinite").mkdir()
    save_file(tensors, tmp_path / "infinite" / "model.safetensors")
    (tmp_path / "infinite" / "config.json").write_text((source / "config.json").read_text())
    shown = refusal(capsys, tmp_path / "infinite", out, *scheme)
    assert "'model.layers.1.mlp.up_proj.weight' has numbers that are not finite, which int8 cannot hold" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["infinite"]


def test_a_large_model_has_several_files_and_an_index(root: Path, tmp_path: Path) -> None:
    tensors = read_folder(dense_model(root)).tensors
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with SafetensorsWriter(tmp_path, layout, largest_file=100_000) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    files = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(files) > 2
    theirs = {name: tensor for file in files for name, tensor in load_file(file).items()}
    ours = read_folder(tmp_path).tensors  # by the index
    assert ours.keys() == theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(ours[name].data, tensor.data)
        np.testing.assert_array_equal(theirs[name].numpy(), dequantize(tensor))


STACKED = {
    "gpt-oss": {"hidden_size": 64, "intermediate_size": 32, "layer_types": ["sliding_attention", "full_attention"]},
    "granite-moe": {"hidden_size": 64, "intermediate_size": 32, "shared_intermediate_size": 64},
}


@pytest.mark.parametrize("family", STACKED)
def test_a_stack_becomes_matrices_of_each_expert(
    root: Path, tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By plain rounding exactly; calibrated, so that their products lose less than their numbers."""
    source = make_tiny_model(family, root / "stacked" / family, num_hidden_layers=2, head_dim=16, **STACKED[family])
    plain = opened(quantize(source, tmp_path / "plain", "int4"))
    dense, found = parameters_by_name(opened(source)), parameters_by_name(plain)
    assert found.keys() == dense.keys()
    assert sum(part.scheme.format is not None for name, part in found.items() if ".experts." in name) == 2 * 5 * 3
    for name, part in found.items():
        expected = dequantize(dense[name].dense())
        if part.scheme.format is not None:
            expected = dequantize_scaled(quantised(expected, part.scheme.format, "F32"))
        np.testing.assert_array_equal(dequantize(part.dense()), expected)
    assert plain.leftovers() == []
    text = tmp_path / "text"
    text.write_text(" ".join(np.random.default_rng(2).choice(WORDS, 600)))
    options = ("--calibration", str(text), "--num-calibration-samples", "1", "--report", str(tmp_path / "report.json"))
    quantize(with_tokenizer(source, WORDS), tmp_path / "calibrated", "int4", *options)
    assert "layer  relative error  of products" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    chosen = {name for name in report["products"] if ".experts." in name}
    assert len(chosen) > 12
    assert all(report["products"][name] < report["matrices"][name] for name in chosen)


@pytest.mark.parametrize("family", STACKED)
def test_compressed_tensors_decompresses_each_experts_matrix(root: Path, tmp_path: Path, family: str) -> None:
    """transformers has no modules for single experts."""
    compressors: Any = pytest.importorskip("compressed_tensors.compressors")
    quantization: Any = pytest.importorskip("compressed_tensors.quantization")
    source = make_tiny_model(family, root / "read back" / family, num_hidden_layers=2, head_dim=16, **STACKED[family])
    target = quantize(source, tmp_path / "out", "int4")
    config = quantization.QuantizationConfig(**json.loads((target / "config.json").read_text())["quantization_config"])
    scheme = config.config_groups["group_0"]
    compressor = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    stored = load_file(target / "model.safetensors")
    for name, part in parameters_by_name(opened(target)).items():
        if ".experts." in name and part.scheme.format is not None:
            prefix = name.removesuffix("weight")
            given = {key.removeprefix(prefix): each for key, each in stored.items() if key.startswith(prefix)}
            theirs = compressor.decompress(given, scheme)["weight"]
            np.testing.assert_array_equal(theirs.float().numpy(), dequantize(part.dense()))
