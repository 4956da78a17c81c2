"""Scaled matrices as the CPU holds them: the same numbers in another order, at the quantised size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from octavo.kernels.cpu.blocks import block_dtype, in_blocks
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.reference.scaled import dequantize_scaled
from octavo.kernels.scaled import CODES, ScaledFormat, ScaledTensor
from octavo.kernels.tensor import DType
from octavo.quantization.at_load import quantised


def scaled(form: ScaledFormat, rows: int = 40, cols: int = 256) -> ScaledTensor:
    rng = np.random.default_rng(0)
    tensor = quantised(rng.standard_normal((rows, cols)).astype(np.float32), replace(form, is_sorted=False))
    if form.has_zeros:
        tensor = replace(tensor, zeros=rng.integers(0, 16, tensor.scales.shape).astype(np.int16))
    if form.is_sorted:
        groups = rng.permutation(np.arange(cols) // form.block[1]).astype(np.int32)
        tensor = replace(tensor, format=form, groups=groups)
    return tensor


FORMATS: list[tuple[ScaledFormat, DType, float]] = [  # bits for each number, scales included
    (ScaledFormat("F8_E4M3", (0, 0)), "F8_128", 8.25),
    (ScaledFormat("F8_E4M3", (1, 0)), "F8_128", 8.25),
    (ScaledFormat("F8_E4M3", (16, 32)), "F8_32", 9),
    (ScaledFormat("F8_E4M3", (128, 128)), "F8_128", 8.25),
    (ScaledFormat("I8", (1, 0)), "I8_128", 8.3125),
    (ScaledFormat("I8", (1, 64), has_zeros=True), "I8_32", 9.25),
    (ScaledFormat("U4", (1, 32)), "U4_32", 5.25),
    (ScaledFormat("U4", (1, 64), has_zeros=True), "U4_32", 5.25),
    (ScaledFormat("U4", (1, 128), has_zeros=True), "U4_128", 4.3125),
    (ScaledFormat("U4", (1, 0)), "U4_128", 4.3125),
    (ScaledFormat("E2M1", (1, 32)), "E2M1_32", 5.25),
    (ScaledFormat("NF4", (1, 64)), "F32", 32),
    (ScaledFormat("U4", (1, 32), is_sorted=True), "F32", 32),
]


@pytest.mark.parametrize(("form", "dtype", "bits"), FORMATS)
def test_blocks_have_the_same_numbers(form: ScaledFormat, dtype: DType, bits: float) -> None:
    tensor = scaled(form)
    blocks = in_blocks(tensor)
    assert (blocks.dtype, blocks.shape) == (dtype, tensor.shape)
    assert blocks.data.nbytes * 8 == bits * tensor.rows * tensor.cols
    np.testing.assert_array_equal(dequantize(blocks), dequantize_scaled(tensor))


@pytest.mark.parametrize("code", CODES)
def test_inputs_that_32_does_not_divide_become_float32(code) -> None:
    form = ScaledFormat(code, (1, 0))
    assert block_dtype(form, (8, 48)) == "F32"
    assert in_blocks(scaled(form, 8, 48)).dtype == "F32"
