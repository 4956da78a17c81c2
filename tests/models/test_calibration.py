"""Calibration: the sums of a layer's inputs against transformers' own, and models that are written with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

from octavo.cli.main import main  # noqa: E402
from octavo.kernels.arrays import FloatArray, IntArray  # noqa: E402
from octavo.kernels.reference.calibrating import LayerRuns  # noqa: E402
from octavo.kernels.reference.dequantize import dequantize  # noqa: E402
from octavo.kernels.scaled import ScaledTensor  # noqa: E402
from octavo.models.calibration import through  # noqa: E402
from octavo.models.registry import build_model  # noqa: E402
from octavo.quantization.error_feedback import calibrated  # noqa: E402
from octavo.text.calibration_text import windows  # noqa: E402
from octavo.text.tokenizer import Tokenizer, open_tokenizer  # noqa: E402
from tests.quantization.folders import dense_model, matrices, opened  # noqa: E402
from tests.tiny_models import make_tiny_model, with_tokenizer  # noqa: E402

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran", "to", "the", "tree"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibration")


def drawn(count: int, length: int) -> IntArray:
    return np.random.default_rng(1).integers(3, 160, (count, length)).astype(np.int32)


def moments_of(folder: Path, texts: IntArray) -> Iterator[dict[str, FloatArray]]:
    """Of each layer, with the model as it is."""
    checkpoint = opened(folder)
    a = checkpoint.architecture
    decoder = build_model(a, checkpoint, [(0, 0)] * a.num_layers, texts.shape[1])
    runs = LayerRuns(texts)
    assert decoder.embedding is not None
    runs.embed(decoder.embedding)
    for layer in decoder.layers:
        yield runs.products(through(layer))
        runs.advance(through(layer), {})


def inputs_of(model: Any, texts: IntArray) -> dict[str, FloatArray]:
    """X^T X of the inputs of every Linear, by transformers' names."""
    seen: dict[str, FloatArray] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":

            def hook(_: Any, given: Any, name: str = name) -> None:
                flat = given[0].flatten(0, -2)
                seen[f"{name}.weight"] = seen.get(f"{name}.weight", 0) + (flat.T @ flat).numpy()

            module.register_forward_pre_hook(hook)
    with torch.inference_mode():
        model(torch.from_numpy(texts).long())
    return seen


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt", "deepseek-v3"])
def test_a_layers_inputs_are_those_of_transformers(root: Path, family: str) -> None:
    """In several steps, over more than a window of Gemma's; without experts, which transformers does not show."""
    more = {"first_k_dense_replace": 2} if "deepseek" in family else {}
    folder, texts = make_tiny_model(family, root / family, **more), drawn(70, 36)
    expected = inputs_of(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), texts)
    found = {name: sums for layer in moments_of(folder, texts) for name, sums in layer.items()}
    assert found.keys() == expected.keys()
    for name, sums in found.items():
        np.testing.assert_allclose(sums, expected[name], rtol=1e-3, atol=1e-3 * np.abs(expected[name]).max())


def test_an_expert_sees_the_tokens_that_were_sent_to_it(root: Path) -> None:
    folder, texts = make_tiny_model("qwen3-moe", root / "moe"), drawn(4, 20)
    for layer in moments_of(folder, texts):
        gates = {name: sums for name, sums in layer.items() if "experts." in name and "gate_proj" in name}
        router = next(sums for name, sums in layer.items() if name.endswith("mlp.gate.weight"))
        chosen = opened(folder).architecture.experts.routing.num_chosen  # type: ignore[union-attr]
        assert len(gates) > chosen
        np.testing.assert_allclose(sum(gates.values()), chosen * router, rtol=1e-3, atol=1e-3 * router.max())


@pytest.mark.parametrize("kind", ["fp8", "int8", "int4"])
def test_later_layers_make_up_for_earlier_ones(root: Path, tmp_path: Path, kind: str) -> None:
    """The second layer's codes come from inputs that the first one, quantised, has computed."""
    source, text = with_tokenizer(dense_model(root), WORDS), tmp_path / "text"
    text.write_text(" ".join(np.random.default_rng(2).choice(WORDS, 2000)))
    given = ["--scheme", kind, "--calibration", str(text), "--max-seq-length", "256", "--num-calibration-samples", "4"]
    given += ["--token-weights", "equal"]
    report = tmp_path / "report.json"
    assert main(["quantize", str(source), str(tmp_path / "out"), *given, "--report", str(report)]) == 0
    made, dense = matrices(opened(tmp_path / "out")), matrices(opened(source))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    stored = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name in made:
        stored[name].weight.data = torch.from_numpy(dequantize(made[name].dense()).copy())
    moments = inputs_of(model, windows(tokenizer_of(source), text.read_text(), 256, 4))
    for name in made:
        if ".0.self_attn.q" in name or ".1.self_attn.q" in name:
            compact = made[name].compact()
            assert isinstance(compact, ScaledTensor)
            wanted = calibrated(dequantize(dense[name].dense()), moments[name], compact.format, "F32")
            # two ways to sum round differently, and scales are fitted to the codes
            assert np.isclose(compact.scales, wanted.scales, rtol=1e-5).mean() > 0.95
            assert (compact.codes == wanted.codes).mean() > 0.95
    errors = json.loads(report.read_text())
    assert errors["products"].keys() == errors["matrices"].keys() == made.keys()
    assert all(0 < errors["products"][name] < errors["matrices"][name] for name in made)


def tokenizer_of(folder: Path) -> Tokenizer:
    checkpoint = opened(folder)
    from octavo.config import ModelConfig

    tokenizer = open_tokenizer(ModelConfig(model=str(folder)), lambda: checkpoint.tokenizer_source)
    assert tokenizer is not None
    return tokenizer


def test_windows_are_spread_over_the_text(root: Path) -> None:
    tokenizer = tokenizer_of(with_tokenizer(dense_model(root), WORDS))
    text = " ".join(np.random.default_rng(2).choice(WORDS, 1000))
    tokens = tokenizer.encode(text)
    found = windows(tokenizer, text, 100, 3)
    assert found.shape == (3, 100)
    assert [row.tolist() for row in found] == [tokens[at : at + 100] for at in (0, 450, 900)]
    assert windows(tokenizer, "the cat", 100, 3).shape == (1, 2)
    assert windows(tokenizer, text, 100, 50).shape == (10, 100)


def test_modules_may_stay_dense(root: Path, tmp_path: Path) -> None:
    source, out = dense_model(root), tmp_path / "out"
    given = ["--scheme", "int8", "--no-calibration", "--ignore", "mlp.down_proj", "model.layers.1.self_attn"]
    assert main(["quantize", str(source), str(out), *given]) == 0
    kept = {name for name, part in matrices(opened(out)).items() if part.scheme.format is None}
    attention = {f"model.layers.1.self_attn.{x}_proj.weight" for x in "qkvo"}
    assert kept == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)} | attention
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert {name.removesuffix(".weight") for name in kept} == set(ignored) - {"lm_head"}


def test_what_cannot_be_calibrated_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, text = with_tokenizer(dense_model(root), WORDS), tmp_path / "text"
    text.write_text("the cat")
    bare = make_tiny_model("llama", root / "bare")

    def refusal(model: Path, *words: object) -> str:
        assert main(["quantize", str(model), str(tmp_path / "out"), "--scheme", "int8", *map(str, words)]) == 2
        return capsys.readouterr().err

    assert "leave one of them out" in refusal(source, "--no-calibration", "--calibration", text)
    assert "--num-calibration-samples is 0, allowed is 1" in refusal(source, "--num-calibration-samples", 0)
    assert "allowed are up to 256 tokens, the model's context" in refusal(source, "--max-seq-length", 257)
    assert f"--calibration is {str(tmp_path)[:80]!r}, allowed are a file of up" in refusal(
        source, "--calibration", tmp_path
    )
    assert "cannot be read: No such file or directory; allowed are" in refusal(source, "--calibration", "none")
    assert "calibration needs the model's tokenizer" in refusal(bare, "--calibration", text)
    assert "'nothing', which names no matrix" in refusal(source, "--ignore", "nothing")
    assert "leaves no matrix to be quantised" in refusal(source, "--ignore", "model")
    text.write_text("")
    assert "the calibration text has 0 tokens, of which a sample holds 256" in refusal(source, "--calibration", text)
    monkeypatch.setattr("octavo.cli.quantize.find_spec", lambda name: None)
    assert "or set --no-calibration" in refusal(source)
    assert not (tmp_path / "out").exists()
