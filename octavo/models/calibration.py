"""Calibrated codes for the matrices of a model, made layer by layer from texts that it reads.

A layer sees what the layers before it, quantised, make of the texts, so that it can make up for their errors. Codes are
asked for in the order of the layers (`QuantizedCopy.written`), so one layer's are in memory at a time.

A token counts for what its products matter to the model's answers (`kernels/reference/token_weights.py`). For that the
dense model reads the texts once before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MappingProxyType

import numpy as np

from octavo.errors import ModelLoadError
from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.reference.calibrating import LayerRuns
from octavo.kernels.reference.product_ops import RunLayer
from octavo.kernels.reference.scaled import dequantize_scaled
from octavo.kernels.reference.token_weights import Backward, TokenWeights
from octavo.kernels.tensor import DType
from octavo.models.decoder import Decoder, Layer
from octavo.models.quantized_copy import Coded, QuantizedCopy, nearest
from octavo.models.registry import build_model
from octavo.quantization.compressing import Compression
from octavo.quantization.error_feedback import calibrated


def through(layer: Layer) -> RunLayer:
    """The whole layer, from a stream that is added up to one that is."""

    def run(ops: Ops, hidden: Tensor) -> Tensor:
        pending, residual = layer.finish(ops, *layer.attend(ops, None, hidden))
        return residual if pending is None else ops.add(pending, residual)

    return run


def logits(decoder: Decoder) -> RunLayer:
    """From the stream behind the last layer."""

    def run(ops: Ops, hidden: Tensor) -> Tensor:
        return decoder.logits_of(ops, hidden if decoder.norm is None else decoder.norm(ops, hidden))

    return run


class Calibration:
    """Implements `quantized_copy.Codes`. texts: token ids [texts, length]. weights: by `token_weights`."""

    def __init__(self, copied: QuantizedCopy, texts: IntArray, weights: TokenWeights = MappingProxyType({})) -> None:
        decoder = _decoder(copied, texts)
        assert decoder.embedding is not None, "a whole model begins with tokens"
        self._copied = copied
        self._runs = LayerRuns(texts, weights)
        self._runs.embed(decoder.embedding)
        self._layers: Iterator[tuple[int, Layer]] = iter(enumerate(decoder.layers))
        self._ready: dict[str, Coded] = {}

    def __call__(self, name: str, matrix: FloatArray, compressed: Compression, scale_dtype: DType) -> Coded:
        while name not in self._ready:
            self._ready = self._next_layer(compressed)
        return self._ready.pop(name)

    def _next_layer(self, compressed: Compression) -> dict[str, Coded]:
        index, layer = next(self._layers)
        run = through(layer)
        moments = self._runs.products(run)
        found = {
            name: self._coded(matrix, moments.get(name), compressed, scale_dtype)
            for name, matrix, scale_dtype in self._copied.in_layer(index)
        }
        self._runs.advance(run, {name: dequantize_scaled(coded.tensor) for name, coded in found.items()})
        return found

    def _coded(
        self, matrix: FloatArray, moments: FloatArray | None, compressed: Compression, scale_dtype: DType
    ) -> Coded:
        if moments is None:  # of an expert that no token has reached
            return nearest("", matrix, compressed, scale_dtype)
        if not np.isfinite(moments).all():
            raise ModelLoadError(
                f"{self._copied.checkpoint.label} computes numbers that are not finite from the calibration text: give "
                "it another with --calibration, or leave it out with --no-calibration"
            )
        tensor = calibrated(matrix, moments, compressed.format, scale_dtype)
        change = dequantize_scaled(tensor) - matrix
        errors = float(np.vdot(change @ moments, change)), float(np.vdot(matrix @ moments, matrix))
        return Coded(tensor, errors)


def token_weights(copied: QuantizedCopy, texts: IntArray, advance: Callable[[int], None]) -> TokenWeights:
    """advance: told how many tokens are done. None for a model without an LM head: its tokens count alike."""
    decoder = _decoder(copied, texts)
    assert decoder.embedding is not None, "a whole model begins with tokens"
    if decoder.head is None:
        return {}
    model = Backward(decoder.embedding, [through(layer) for layer in decoder.layers], logits(decoder))
    return model.token_weights(texts, advance)


def _decoder(copied: QuantizedCopy, texts: IntArray) -> Decoder:
    a = copied.checkpoint.architecture
    return build_model(a, copied.checkpoint, [(0, 0)] * a.num_layers, texts.shape[1])
