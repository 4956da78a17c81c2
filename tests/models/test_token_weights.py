"""Weights of calibration tokens: transformers' own squared gradients, what becomes of them in sums, and experts."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

from octavo.cli.main import main  # noqa: E402
from octavo.kernels.arrays import IntArray  # noqa: E402
from octavo.kernels.reference.calibrating import LayerRuns  # noqa: E402
from octavo.kernels.reference.scaled import dequantize_scaled  # noqa: E402
from octavo.kernels.reference.token_weights import Backward, TokenWeights, _GradientOps  # noqa: E402
from octavo.models.calibration import Calibration, logits, through, token_weights  # noqa: E402
from octavo.models.quantized_copy import QuantizedCopy  # noqa: E402
from octavo.models.registry import build_model  # noqa: E402
from octavo.quantization.error_feedback import calibrated  # noqa: E402
from tests.quantization.folders import EXPERTS, SIZES, opened  # noqa: E402
from tests.tiny_models import make_tiny_model  # noqa: E402


def drawn(count: int, length: int) -> IntArray:
    return np.random.default_rng(1).integers(3, 160, (count, length)).astype(np.int32)


def weights_of(folder: Path, texts: IntArray) -> TokenWeights:
    checkpoint, done = opened(folder), []
    a = checkpoint.architecture
    decoder = build_model(a, checkpoint, [(0, 0)] * a.num_layers, texts.shape[1])
    assert decoder.embedding is not None
    model = Backward(decoder.embedding, [through(layer) for layer in decoder.layers], logits(decoder))
    found = model.token_weights(texts, done.append)
    assert sum(done) == texts.size
    return found


def gradients_of(model: Any, texts: IntArray) -> TokenWeights:
    """The squared gradient of every Linear's outputs, by transformers' names, for tokens drawn in the same way."""
    seen: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":

            def hook(_: Any, given: Any, output: Any, name: str = f"{name}.weight") -> None:
                output.register_hook(lambda g: seen.__setitem__(name, g.flatten(0, -2).square().sum(-1)))

            module.register_forward_hook(hook)
    scores = model(torch.from_numpy(texts).long()).logits.flatten(0, 1)
    chosen = torch.multinomial(scores.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    torch.nn.functional.cross_entropy(scores, chosen, reduction="sum").backward()
    return seen


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_weights_are_the_squared_gradients_of_transformers(tmp_path: Path, family: str) -> None:
    """Also with norms after the halves of a layer, windows and capped scores and logits."""
    folder, texts = make_tiny_model(family, tmp_path), drawn(6, 36)
    expected = gradients_of(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), texts)
    found = weights_of(folder, texts)
    assert found.keys() == expected.keys()
    for name, weights in found.items():
        np.testing.assert_allclose(weights, expected[name], rtol=2e-3, atol=1e-4 * float(expected[name].max()))


def test_no_layer_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its float32 weights nor what it computed: its ops hold both."""
    alive: weakref.WeakSet[_GradientOps] = weakref.WeakSet()

    class Watched(_GradientOps):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            assert len(alive) <= 1, "the layer before is gone"
            alive.add(self)

    monkeypatch.setattr("octavo.kernels.reference.token_weights._GradientOps", Watched)
    weights_of(make_tiny_model("llama", tmp_path), drawn(2, 8))
    assert not alive


def test_a_token_counts_for_its_weight(tmp_path: Path) -> None:
    """In the sums of inputs, and so in the error that calibration makes small."""
    folder, texts = make_tiny_model("llama", tmp_path, **SIZES), drawn(4, 64)
    (plain, _), (weighed, weights) = (first_layer(folder, texts, has_weights) for has_weights in (False, True))
    for kind, group_size in (("int4", 32), ("fp8", None), ("int8", None)):
        copied = QuantizedCopy.of(str(folder), kind, group_size)
        matrices = {name: matrix for name, matrix, _ in copied.in_layer(0)}
        for name in (f"model.layers.0.self_attn.{which}_proj.weight" for which in "qk"):
            matrix, errors = matrices[name], []
            for sums in (plain[name], weighed[name]):
                change = dequantize_scaled(calibrated(matrix, sums, copied.compression.format, "F32")) - matrix
                errors.append(float(np.vdot(change @ weighed[name], change)))
            assert weights[name].max() > 5 * weights[name].mean()
            assert errors[1] < 0.85 * errors[0]
    q, k = (f"model.layers.0.self_attn.{which}_proj.weight" for which in "qk")
    np.testing.assert_array_equal(plain[q], plain[k])
    assert not np.allclose(weighed[q], weighed[k])


def first_layer(folder: Path, texts: IntArray, has_weights: bool) -> tuple[Any, TokenWeights]:
    checkpoint = opened(folder)
    a = checkpoint.architecture
    decoder = build_model(a, checkpoint, [(0, 0)] * a.num_layers, texts.shape[1])
    weights = weights_of(folder, texts) if has_weights else {}
    runs = LayerRuns(texts, weights)
    assert decoder.embedding is not None
    runs.embed(decoder.embedding)
    return runs.products(through(decoder.layers[0])), weights


def test_experts_of_a_place_share_their_weights(tmp_path: Path) -> None:
    """An expert's tokens may be others behind quantised layers, so weights are of the place, not of the expert."""
    folder, texts = make_tiny_model("qwen3-moe", tmp_path, **SIZES | EXPERTS), drawn(4, 20)
    copied = QuantizedCopy.of(str(folder), "int8")
    weights = token_weights(copied, texts, lambda count: None)
    place = weights["model.layers.1.mlp.experts.down_proj.weight"]
    assert (place > 0).all()
    assert not any(".experts.0." in name for name in weights)
    codes = Calibration(copied, texts, weights)
    for _, error in copied.written(codes):
        assert error is None or error.products is None or 0 <= error.products[0] < error.products[1]


def test_weights_are_given_in_words_that_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusals = {
        "int8 --token-weights fisher": "invalid choice: 'fisher' (choose from 'gradient', 'equal')",
        "int8 --no-calibration --token-weights equal": "leave one of them out",
        "int8 --no-calibration --max-seq-length 40": "--max-seq-length is 40: leave one of them out",
        "q8_0 --num-calibration-samples 4": "--num-calibration-samples is given, but q8_0 is of GGUF",
        "q8_0 --token-weights equal": "--token-weights is given, but q8_0 is of GGUF",
    }
    for words, refusal in refusals.items():
        assert main(["quantize", "smollm2", str(tmp_path / "out"), "--scheme", *words.split()]) == 2
        assert refusal in capsys.readouterr().err
