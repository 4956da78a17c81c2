"""Dense checkpoints quantised as they load: the nearest codes, one matrix at a time, and dummy weights alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.errors import ConfigError, ModelLoadError
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.reference.scaled import dequantize_scaled
from octavo.kernels.scaled import CODES, Code, ScaledFormat, ScaledTensor, numbers_of
from octavo.quantization.at_load import FORMATS, quantised
from tests.quantization.folders import dense_model, folder_of, matrices, opened


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("at_load")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("block", [(0, 0), (1, 0), (1, 32), (48, 40)])
def test_codes_are_the_nearest(code: Code, block: tuple[int, int]) -> None:
    """Of all the numbers that a code can stand for under its block's scale."""
    matrix = np.random.default_rng(1).standard_normal((70, 96)).astype(np.float32)
    tensor = quantised(matrix, ScaledFormat(code, block))
    rows, cols = tensor.format.block_of(matrix.shape)
    spread = tensor.scales.repeat(rows, 0).repeat(cols, 1)[:70, :96, None]
    allowed = (numbers_of(code) - (8 if code == "U4" else 0)) * spread
    nearest = np.nanmin(np.abs(allowed - matrix[..., None]), axis=-1)
    np.testing.assert_allclose(np.abs(dequantize_scaled(tensor) - matrix), nearest, rtol=1e-5, atol=1e-6)


def test_floats_of_eight_bits_round_as_torch_rounds() -> None:
    numbers = np.concatenate([np.random.default_rng(2).standard_normal(5000) * 60, np.arange(-448, 448.5, 0.5)])
    matrix = np.append(numbers, 448).astype(np.float32)[None]  # the largest, so that the scale is one
    tensor = quantised(matrix, ScaledFormat("F8_E4M3", (1, 0)))
    expected = torch.tensor(matrix).to(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(dequantize_scaled(tensor), expected)


@pytest.mark.parametrize("method", FORMATS)
def test_a_dense_checkpoint_is_quantised_matrix_by_matrix(root: Path, method: str) -> None:
    folder = dense_model(root)
    dense, found = matrices(opened(folder)), matrices(opened(folder, quantization=method))
    for name, part in found.items():
        compact, expected = part.compact(), dequantize(dense[name].dense())
        assert isinstance(compact, ScaledTensor)
        error = np.abs(dequantize_scaled(compact) - expected).max() / np.abs(expected).max()
        assert 0 < error < {"fp8": 0.04, "int8": 0.005, "int4": 0.125}[method]
        np.testing.assert_array_equal(dequantize(part.dense()), dequantize_scaled(compact))


def test_a_group_is_smaller_where_128_does_not_divide(root: Path) -> None:
    found = matrices(opened(dense_model(root), quantization="int4"))
    blocks = {name.split(".")[-2]: part.scheme.format.block for name, part in found.items()}
    assert (blocks["o_proj"], blocks["down_proj"], blocks["up_proj"]) == ((1, 128), (1, 64), (1, 64))


def test_a_method_that_the_checkpoint_is_not_of_is_refused(root: Path) -> None:
    gptq = folder_of(root, "gptq") / "quantised"
    assert matrices(opened(gptq, quantization="gptq_marlin"))
    with pytest.raises(ConfigError, match=r"quantization is 'int8', which does not fit .* quantised as gptq"):
        opened(gptq, quantization="int8")
    with pytest.raises(ConfigError, match=r"quantization is 'awq', which does not fit .*it is dense: fp8, int8, int4"):
        opened(dense_model(root), quantization="awq")


def test_a_matrix_that_is_not_finite_is_refused(root: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(dense_model(root) / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").symlink_to(dense_model(root) / "config.json")
    with pytest.raises(ModelLoadError, match=r"up_proj.weight' has numbers that are not finite, which int8"):
        matrices(opened(tmp_path, quantization="int8"))["model.layers.0.mlp.up_proj.weight"].compact()


@pytest.mark.parametrize("kind", ["fp8-blocks", "ct-w8a8-zeros", "gptq-sorted", "awq", "bnb-nf4", "ct-mxfp4"])
def test_dummy_weights_have_the_checkpoints_format(root: Path, kind: str) -> None:
    folder = folder_of(root, kind) / "quantised"
    stored, drawn = matrices(opened(folder)), matrices(opened(folder, load_format="dummy"))
    for name, part in drawn.items():
        compact = part.compact()
        assert isinstance(compact, ScaledTensor)
        assert (compact.format, compact.shape) == (stored[name].scheme.format, stored[name].shape)
        assert np.isfinite(dequantize_scaled(compact)).all()


def test_scales_of_int4_are_bfloat16_numbers() -> None:
    matrix = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    for code, is_short in (("U4", True), ("I8", False)):
        tensor = quantised(matrix, ScaledFormat(code, (1, 64)))
        assert (tensor.scale_dtype == "BF16") == is_short
        assert ((tensor.scales.view(np.uint32) & 0xFFFF) == 0).all() == is_short
