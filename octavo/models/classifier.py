"""Classifier: the head that tells classes apart, from a text's vector or a token's.

    x -> [dense -> activation -> norm] -> linear -> a number for each class

It is small and runs once for a text, in numpy: a row at a time, so that a text's numbers do not depend, to the bit, on
the others in its step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import erf

import numpy as np

from octavo.kernels.arrays import FloatArray
from octavo.kernels.reference.dequantize import values
from octavo.models.architecture import Architecture
from octavo.models.weights import TensorSource, TensorTable, Weights

_Activation = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True, eq=False)
class _Affine:
    weight: FloatArray
    bias: FloatArray | None

    def __call__(self, x: FloatArray) -> FloatArray:
        y: FloatArray = self.weight @ x
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True, slots=True, eq=False)
class _Norm:
    weight: FloatArray
    bias: FloatArray | None
    eps: float

    def __call__(self, x: FloatArray) -> FloatArray:
        centred = x - x.mean(dtype=np.float32)
        y: FloatArray = centred / np.sqrt((centred**2).mean(dtype=np.float32) + np.float32(self.eps)) * self.weight
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """steps: the functions of a row, in order."""

    steps: tuple[_Activation, ...]

    def __call__(self, rows: FloatArray) -> FloatArray:
        """[N, H] -> [N, classes]."""
        return np.stack([self._of_row(row) for row in rows])

    def _of_row(self, row: FloatArray) -> FloatArray:
        for step in self.steps:
            row = step(row)
        return row


@dataclass(frozen=True, slots=True)
class _Names:
    """The head's tensors in a family's checkpoints. activation: what follows the dense layer; None: as
    `extra["classifier_activation"]` says."""

    out: str
    dense: str | None = None
    activation: str | None = "tanh"
    norm: str | None = None
    out_is_biased: bool = True


_ROBERTA = _Names(dense="classifier.dense", out="classifier.out_proj")
_MODERNBERT = _Names(dense="head.dense", activation=None, norm="head.norm", out="classifier")
_OF_TEXTS = {
    "bert": _Names(dense="bert.pooler.dense", out="classifier"),
    "roberta": _ROBERTA,
    "mpnet": _ROBERTA,
    "modernbert": _MODERNBERT,
}
_OF_TOKENS = {**dict.fromkeys(("bert", "roberta", "mpnet"), _Names(out="classifier")), "modernbert": _MODERNBERT}


def classifier_tensors(a: Architecture) -> TensorTable:
    """Empty if the model has no head for classes."""
    if a.classes is None:
        return {}
    names, hidden, num_labels = _names(a), a.hidden_size, len(a.classes.labels)
    table: TensorTable = {f"{names.out}.weight": (num_labels, hidden)}
    if names.out_is_biased:
        table[f"{names.out}.bias"] = (num_labels,)
    if names.dense is not None:
        table[f"{names.dense}.weight"] = (hidden, hidden)
        if a.extra.get("classifier_bias", True):
            table[f"{names.dense}.bias"] = (hidden,)
    if names.norm is not None:
        table[f"{names.norm}.weight"] = (hidden,)
        if a.extra.get("norm_bias", True):
            table[f"{names.norm}.bias"] = (hidden,)
    return table


def read_classifier(a: Architecture, source: TensorSource) -> Classifier | None:
    """None if the model has no head for classes."""
    if a.classes is None:
        return None
    names, weights = _names(a), Weights(source, classifier_tensors(a), a.quantization)

    def affine(name: str) -> _Affine:
        return _Affine(values(weights.parameter(f"{name}.weight")), _bias(weights, name))

    steps: list[_Activation] = []
    if names.dense is not None:
        steps += [affine(names.dense), _ACTIVATIONS[names.activation or a.extra["classifier_activation"]]]
    if names.norm is not None:
        steps.append(_Norm(values(weights.parameter(f"{names.norm}.weight")), _bias(weights, names.norm), a.norm_eps))
    return Classifier((*steps, affine(names.out)))


def _bias(weights: Weights, name: str) -> FloatArray | None:
    bias = weights.optional(f"{name}.bias")
    return None if bias is None else values(bias)


def _names(a: Architecture) -> _Names:
    assert a.classes is not None, "the model has a head for classes"
    of_tokens = a.classes.of_tokens
    score = _Names(out="score", out_is_biased=of_tokens)
    return (_OF_TOKENS if of_tokens else _OF_TEXTS).get(a.family, score)


def _gelu(x: FloatArray) -> FloatArray:
    erfs = np.array([erf(number) for number in (x * np.float32(2**-0.5)).tolist()], np.float32)
    y: FloatArray = x * np.float32(0.5) * (1 + erfs)
    return y


def _gelu_tanh(x: FloatArray) -> FloatArray:
    inner = np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3)
    y: FloatArray = np.float32(0.5) * x * (1 + np.tanh(inner))
    return y


def _silu(x: FloatArray) -> FloatArray:
    y: FloatArray = x * np.float32(0.5) * (1 + np.tanh(x * np.float32(0.5)))
    return y


_ACTIVATIONS: dict[str, _Activation] = {
    "tanh": np.tanh,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu": lambda x: np.maximum(x, 0),
}
