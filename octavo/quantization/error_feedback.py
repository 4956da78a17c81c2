"""Codes that keep products right rather than each number: calibrated quantisation, after GPTQ (Frantar et al., 2022).

Of a matrix W and inputs X, the squared error of the products is tr(D H D^T), with D = Q - W and H = X^T X. Inputs are
correlated, so the error that one column's rounding makes can be taken back by the columns that are not rounded yet:

    columns by falling H[i, i]: those that matter most are rounded first (act-order)
        codes of column i       the nearest to W[:, i]
        W[:, j] -= error of column i / U[i, i] * U[i, j]       for every later j; H^-1 = U^T U
    then a few times over all columns, each given all others (as QuantEase does; Behdin et al., 2023)
        codes of column i       the nearest to W[:, i] - (sum over j of D[:, j] H[j, i], without j = i) / H[i, i]

Scales are chosen before the first column, so groups stay runs of inputs: those of plain rounding, or in groups up to a
fifth less, which cuts off the largest numbers for the others' sake. Between those later rounds a group's scale becomes
the one by which its codes, z times the scale, have the least error given all other groups:

        scale of group g       less (sum over i in g of z[:, i] (D H)[:, i]) / (z H[g, g] z^T)

Columns are worked on in blocks, so that most of the work is products of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.reference.dequantize import convert, dequantize
from octavo.kernels.reference.scaled import columns_of, pack_nibbles
from octavo.kernels.scaled import IMPLIED_ZERO, FloatArray, ScaledFormat, ScaledTensor, numbers_of
from octavo.kernels.tensor import DType, from_array
from octavo.quantization.at_load import nearest_codes, quantised

_BLOCK = 128
_DAMPING = 0.03  # of the mean of H's diagonal, which keeps its inverse in bounds
_SCALES = np.linspace(1, 0.8, 11, dtype=np.float32)  # that are tried, of plain rounding's
_SWEEPS, _FITTED_SWEEPS = 2, 2  # with the first scales, and each with scales that were fitted before it
_LEAST_SCALE, _MOST_SCALE = np.float32(0.7), np.float32(1.4)  # of the one before


def calibrated(matrix: FloatArray, moments: FloatArray, form: ScaledFormat, scale_dtype: DType) -> ScaledTensor:
    """moments: H. An input that was always zero has no say, and is rounded to the nearest."""
    assert form.block[0] == 1, f"a column of {form.label} has a scale for each output"
    plain = quantised(matrix, form, scale_dtype)
    largest = float(np.diagonal(moments).max())
    if largest <= 0:
        return plain
    damped = moments / np.float32(largest)  # of a size that float32 holds, whatever the activations'
    damped[np.diag_indices(len(damped))] += np.float32(_DAMPING) * np.diagonal(damped).mean()
    if form.block[1]:
        plain = _with_least_error(matrix, plain, np.diagonal(damped))
    columns = _Columns.of(matrix, plain)
    _feed_back(columns, damped)
    for _ in range(_SWEEPS):
        _sweep(columns, damped)
    for _ in range(_FITTED_SWEEPS if form.block[1] else 0):
        _fit_scales(columns, damped, scale_dtype)
        _sweep(columns, damped)
    codes, scales = np.ascontiguousarray(columns.codes.T), plain.scales
    if form.block[1]:
        scales = np.where(scales == 0, scales, columns.scales.T)
    return ScaledTensor(
        form, matrix.shape, pack_nibbles(codes) if form.is_nibbles else codes, scales, scale_dtype, plain.zeros
    )


def _with_least_error(matrix: FloatArray, plain: ScaledTensor, weights: FloatArray) -> ScaledTensor:
    """The same with the scale, of those that are tried, by which each group's nearest codes have the least error.
    weights: of the inputs' squared errors [in]."""
    code, (rows, groups) = plain.format.code, plain.scales.shape
    numbers, known = matrix.reshape(rows, groups, -1), numbers_of(code)
    implied = np.float32(IMPLIED_ZERO.get(code, 0))
    zeros = np.full((rows, groups), implied) if plain.zeros is None else plain.zeros.astype(np.float32)
    best, least = plain.scales, np.full((rows, groups), np.inf, np.float32)
    for factor in _SCALES:
        scales = dequantize(convert(from_array(plain.scales * factor), plain.scale_dtype))
        steps = np.where(scales == 0, np.float32(1), scales)[..., None]
        codes = nearest_codes(code, numbers / steps + (zeros - implied)[..., None])
        errors = np.square((known[codes] - zeros[..., None]) * steps - numbers)
        found = np.einsum("rgi,gi->rg", errors, weights.reshape(groups, -1))
        best, least = np.where(found < least, scales, best), np.minimum(found, least)
    return replace(plain, scales=best)


@dataclass(frozen=True, slots=True)
class _Columns:
    """A matrix by its columns: arrays are [in, out], so that a column's numbers are next to each other. spread: the row
    of `scales` and `zeros` [groups, out] for each column. zeros: over what the code implies."""

    form: ScaledFormat
    numbers: FloatArray
    codes: NDArray[np.uint8]
    scales: FloatArray
    zeros: FloatArray
    spread: NDArray[np.int64]

    @classmethod
    def of(cls, matrix: FloatArray, plain: ScaledTensor) -> _Columns:
        scales = np.ascontiguousarray(np.where(plain.scales == 0, np.float32(1), plain.scales).T)
        zeros = np.zeros_like(scales)
        if plain.zeros is not None:
            zeros[:] = plain.zeros.T - IMPLIED_ZERO.get(plain.format.code, 0)
        numbers = np.ascontiguousarray(matrix.T)
        return cls(plain.format, numbers, np.empty(numbers.shape, np.uint8), scales, zeros, columns_of(plain))

    def round(self, column: int, wanted: FloatArray) -> FloatArray:
        """Set a column's codes to the nearest, and return the numbers that they stand for."""
        scales, zeros = self.scales[self.spread[column]], self.zeros[self.spread[column]]
        codes = self.codes[column] = nearest_codes(self.form.code, wanted / scales + zeros)
        found: FloatArray = (self._known[codes] - zeros) * scales
        return found

    @property
    def _known(self) -> FloatArray:
        return numbers_of(self.form.code) - np.float32(IMPLIED_ZERO.get(self.form.code, 0))

    def errors(self) -> FloatArray:
        """Of all columns, as their codes are now."""
        return (self._known[self.codes] - self.zeros[self.spread]) * self.scales[self.spread] - self.numbers


def _feed_back(columns: _Columns, moments: FloatArray) -> None:
    order = np.argsort(-np.diagonal(moments), kind="stable")
    upper = _inverse_factor(moments[np.ix_(order, order)])
    left: Any = columns.numbers[order]
    for begin in range(0, len(order), _BLOCK):
        end = min(begin + _BLOCK, len(order))
        errors = np.empty_like(left[begin:end])
        for i in range(begin, end):
            error = errors[i - begin] = (left[i] - columns.round(order[i], left[i])) / upper[i, i]
            left[i + 1 : end] -= np.outer(upper[i, i + 1 : end], error)
        left[end:] -= upper[begin:end, end:].T @ errors


def _sweep(columns: _Columns, moments: FloatArray) -> None:
    errors = columns.errors()
    for begin in range(0, len(errors), _BLOCK):
        end = min(begin + _BLOCK, len(errors))
        pulls = moments[begin:end] @ errors
        for i in range(begin, end):
            others = pulls[i - begin] / moments[i, i] - errors[i]
            changed = columns.round(i, columns.numbers[i] - others) - columns.numbers[i]
            pulls[i - begin + 1 :] += np.outer(moments[i + 1 : end, i], changed - errors[i])
            errors[i] = changed


def _fit_scales(columns: _Columns, moments: FloatArray, scale_dtype: DType) -> None:
    """In groups: to the codes, as they are now."""
    errors, width = columns.errors(), len(columns.numbers) // len(columns.scales)
    assert _BLOCK % width == 0, f"a block of {_BLOCK} columns has whole groups, not of {width}"
    for begin in range(0, len(errors), _BLOCK):
        end = min(begin + _BLOCK, len(errors))
        pulls = moments[begin:end] @ errors
        for first in range(begin, end, width):
            group, scales = slice(first, first + width), columns.scales[first // width]
            steps = columns._known[columns.codes[group]] - columns.zeros[first // width]
            weights = np.einsum("io,io->o", steps, moments[group, group] @ steps)
            excess = np.einsum("io,io->o", steps, pulls[first - begin : first - begin + width])
            change = 1 - excess / (np.maximum(weights, np.float32(1e-30)) * scales)
            fitted = scales * np.clip(change, _LEAST_SCALE, _MOST_SCALE)
            fitted = dequantize(convert(from_array(np.where(weights > 0, fitted, scales)), scale_dtype))
            moved = steps * (fitted - scales)
            pulls += moments[begin:end, group] @ moved
            errors[group] += moved
            columns.scales[first // width] = fitted


def _inverse_factor(moments: FloatArray) -> FloatArray:
    """U, upper triangular, of H^-1 = U^T U: the inverse of R in H = R R^T, which is a Cholesky factor from the end."""
    lower = np.linalg.cholesky(moments[::-1, ::-1].astype(np.float64))
    return np.ascontiguousarray(np.linalg.inv(lower)[::-1, ::-1], np.float32)
