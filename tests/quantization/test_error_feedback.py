"""Codes chosen for a product: they are closer to it than the nearest codes, on every grid that is written."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.kernels.reference.dequantize import convert, dequantize
from octavo.kernels.reference.scaled import dequantize_scaled
from octavo.kernels.scaled import FloatArray, ScaledFormat, numbers_of
from octavo.kernels.tensor import from_array
from octavo.quantization import error_feedback
from octavo.quantization.at_load import FORMATS, nearest_codes, quantised
from octavo.quantization.error_feedback import calibrated

WITH_ZEROS = ScaledFormat("U4", (1, 64), has_zeros=True)
GRIDS = (FORMATS["fp8"], FORMATS["int8"], ScaledFormat("U4", (1, 32)), ScaledFormat("U4", (1, 64)), WITH_ZEROS)


def correlated_inputs(rng: np.random.Generator, count: int, width: int) -> FloatArray:
    """A few directions, noise, and inputs of very different sizes, as a layer sees them."""
    directions = rng.standard_normal((count, width // 8)) @ rng.standard_normal((width // 8, width))
    return ((directions + 0.3 * rng.standard_normal((count, width))) * np.exp(rng.standard_normal(width))).astype("f4")


def error(codes: FloatArray, matrix: FloatArray, inputs: FloatArray) -> float:
    return float(np.linalg.norm(inputs @ (codes - matrix).T) / np.linalg.norm(inputs @ matrix.T))


@pytest.mark.parametrize("form", GRIDS, ids=lambda form: form.label)
def test_products_are_closer_than_with_the_nearest_codes(form: ScaledFormat) -> None:
    rng = np.random.default_rng(3)
    matrix, inputs = rng.standard_normal((24, 192)).astype(np.float32), correlated_inputs(rng, 1500, 192)
    seen, unseen = inputs[:1000], inputs[1000:]
    plain, chosen = quantised(matrix, form, "BF16"), calibrated(matrix, seen.T @ seen, form, "BF16")
    assert (abs(chosen.scales / plain.scales - 1) < 0.5).all()
    assert (dequantize(convert(from_array(chosen.scales), "BF16")) == chosen.scales).all()
    assert (chosen.scales == plain.scales).all() == (form.block[1] == 0)
    for some in (seen, unseen):
        nearest, fed_back = (error(dequantize_scaled(each), matrix, some) for each in (plain, chosen))
        assert fed_back < 0.6 * nearest


def test_errors_are_fed_back_as_column_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of 128 with a factor of H's inverse, and plainly, with the inverse of what is left of H."""
    monkeypatch.setattr(error_feedback, "_SWEEPS", 0)
    rng = np.random.default_rng(4)
    form, matrix, inputs = FORMATS["int8"], rng.standard_normal((5, 160)), correlated_inputs(rng, 400, 160)
    moments = (inputs.T @ inputs).astype(np.float64)
    found = calibrated(matrix.astype(np.float32), moments.astype(np.float32), form, "F32")
    damped = moments + error_feedback._DAMPING * np.diagonal(moments).mean() * np.eye(160)
    left, order, numbers = matrix.copy(), np.argsort(-np.diagonal(moments), kind="stable"), np.empty((5, 160))
    for place, column in enumerate(order):
        codes = nearest_codes("I8", (left[:, column] / found.scales[:, 0]).astype(np.float32))
        numbers[:, column] = numbers_of("I8")[codes] * found.scales[:, 0]
        rest = order[place:]
        inverse = np.linalg.inv(damped[np.ix_(rest, rest)])
        left[:, rest] -= np.outer((left[:, column] - numbers[:, column]) / inverse[0, 0], inverse[0])
    same = np.isclose(dequantize_scaled(found), numbers, rtol=1e-5, atol=1e-7)
    assert same.mean() > 0.98  # of two numbers as near float32 may take the other


def test_sweeps_never_make_products_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    matrix, inputs = rng.standard_normal((24, 192)).astype(np.float32), correlated_inputs(rng, 1000, 192)
    errors = []
    for sweeps in (0, 1, 3):
        monkeypatch.setattr(error_feedback, "_SWEEPS", sweeps)
        errors.append(error(dequantize_scaled(calibrated(matrix, inputs.T @ inputs, GRIDS[0], "F32")), matrix, inputs))
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("form", [form for form in GRIDS if form.block[1]], ids=lambda form: form.label)
def test_scales_are_fitted_to_the_codes(form: ScaledFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    matrix, inputs = rng.standard_normal((24, 320)).astype(np.float32), correlated_inputs(rng, 1000, 320)
    moments, errors = inputs.T @ inputs, []
    for sweeps in (0, 1, 3):
        monkeypatch.setattr(error_feedback, "_FITTED_SWEEPS", sweeps)
        errors.append(error(dequantize_scaled(calibrated(matrix, moments, form, "BF16")), matrix, inputs))
    assert errors[0] > errors[1] > errors[2]


def test_fitted_scales_have_the_least_squared_error() -> None:
    """Of a group alone: as a solver finds them. A group without any number keeps its scale."""
    rng, form = np.random.default_rng(8), ScaledFormat("U4", (1, 32))
    matrix, inputs = rng.standard_normal((5, 32)).astype(np.float32), correlated_inputs(rng, 200, 32)
    matrix[4] = 0
    columns = error_feedback._Columns.of(matrix, quantised(matrix, form, "F32"))
    for column in range(32):
        columns.round(column, columns.numbers[column])
    steps, before = columns._known[columns.codes], columns.scales.copy()
    error_feedback._fit_scales(columns, inputs.T @ inputs, "F32")
    for row in range(4):
        products = (inputs @ steps[:, row])[:, None]
        wanted, *_ = np.linalg.lstsq(products, inputs @ matrix[row], rcond=None)
        assert columns.scales[0, row] == pytest.approx(wanted[0], rel=1e-3)
    assert columns.scales[0, 4] == before[0, 4]


@pytest.mark.parametrize("form", [form for form in GRIDS if form.block[1]], ids=lambda form: form.label)
def test_scales_leave_the_least_error(form: ScaledFormat) -> None:
    """Of the nearest codes, with inputs that matter differently; a group may lose its largest number for the others."""
    rng = np.random.default_rng(7)
    matrix, weights = rng.standard_normal((6, 128)).astype(np.float32), np.exp(rng.standard_normal(128)).astype("f4")
    plain = quantised(matrix, form, "BF16")
    found = error_feedback._with_least_error(matrix, plain, weights)

    def errors(scales: FloatArray) -> FloatArray:
        each = np.repeat(scales, form.block[1], axis=1)
        zeros = 8 if plain.zeros is None else np.repeat(plain.zeros, form.block[1], axis=1)
        numbers = (np.clip(np.rint(matrix / each + zeros), 0, 15) - zeros) * each
        squares: FloatArray = (weights * (numbers - matrix) ** 2).reshape(*scales.shape, -1).sum(-1)
        return squares

    assert (errors(found.scales) <= errors(plain.scales)).all()
    assert errors(found.scales).sum() < 0.95 * errors(plain.scales).sum()


@pytest.mark.parametrize("form", GRIDS, ids=lambda form: form.label)
def test_inputs_that_say_nothing_are_rounded_to_the_nearest(form: ScaledFormat) -> None:
    rng = np.random.default_rng(6)
    matrix, inputs = rng.standard_normal((8, 64)).astype(np.float32), correlated_inputs(rng, 100, 64)
    matrix[3] = 0
    inputs[:, ::2] = 0
    plain = dequantize_scaled(quantised(matrix, form, "F32"))
    chosen = calibrated(matrix, inputs.T @ inputs, form, "F32")
    scales = np.repeat(abs(chosen.scales), 64 // chosen.scales.shape[1], axis=1)[:, ::2]
    change, cut_off = abs(dequantize_scaled(chosen)[:, ::2] - matrix[:, ::2]), 0.2 * abs(matrix[:, ::2])
    if form.block[1]:
        assert (change <= 0.5 * scales + cut_off + 1e-6).all()
    else:
        np.testing.assert_array_equal(dequantize_scaled(chosen)[:, ::2], plain[:, ::2])
    np.testing.assert_array_equal(dequantize_scaled(calibrated(matrix, np.zeros((64, 64), "f4"), form, "F32")), plain)
