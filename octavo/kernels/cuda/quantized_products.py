"""The products of a model whose matrices stay quantised: which kernels multiply them, and what surrounds them there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from octavo.kernels.cuda.coded_product import CodedProduct, ScaledProduct
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.ordered_product import OrderedProduct
from octavo.kernels.cuda.quantized_product import Product, QuantizedProduct
from octavo.kernels.cuda.sizes import become_codes, most_few_rows, scaled_rows, scratch_shapes
from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.cuda_cpp.int4_linear import Tiling
from octavo.kernels.cuda_cpp.quantized_format import (
    LAYOUTS,
    fits,
    format_of,
    most_few_code_rows,
    multiplies_wide,
    scales_of,
    sorted_format_of,
)
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight
from octavo.kernels.cuda_cpp.wide_codes import Exchange, prepare
from octavo.kernels.kv_layout import KVDType
from octavo.kernels.parameters import Linear
from octavo.kernels.scaled import ScaledFormat
from octavo.kernels.triton.attention.memory import TORCH_DTYPE
from octavo.kernels.triton.coded.coded_format import pieces_of
from octavo.kernels.triton.linear.quantized import fp8_block_product, fp8_product

_SCALED: dict[str, ScaledProduct] = {"whole": fp8_product, "blocks": fp8_block_product}


class QuantizedProducts:
    """Those of a model, which share their scratch: one runs at a time. linears: of the whole model."""

    @classmethod
    def of(
        cls, linears: Sequence[Linear], dtype: KVDType, max_rows: int, device: torch.device, gpu: GPU, *, is_fixed: bool
    ) -> QuantizedProducts | None:
        """None: all are dense."""
        products = cls(linears, dtype, max_rows, device, gpu, is_fixed=is_fixed)
        return products if products._formats or products._sorted or products._coded else None

    def __init__(
        self,
        linears: Sequence[Linear],
        dtype: KVDType,
        max_rows: int,
        device: torch.device,
        gpu: GPU,
        *,
        is_fixed: bool,
    ) -> None:
        self._gpu, self._dtype = gpu, dtype
        formats = {linear.name: format_of(linear, dtype, gpu, is_fixed=is_fixed) for linear in linears}
        self._formats = {name: form for name, form in formats.items() if form is not None}
        orders = {linear.name: sorted_format_of(linear, dtype, gpu, is_fixed=is_fixed) for linear in linears}
        self._sorted = {name: form for name, form in orders.items() if form is not None}
        others = [linear for linear in linears if linear.name not in self._formats | self._sorted]
        rest = {each.name: pieces_of(each, is_fixed=is_fixed) for each in others}
        self._coded = {name: pieces for name, pieces in rest.items() if pieces}
        quantized = [each for each in linears if each.name in {*self._formats, *self._sorted, *self._coded}]
        shapes = scratch_shapes(quantized, max_rows, dtype, gpu)
        self._dense = torch.empty(shapes["dense"], dtype=TORCH_DTYPE[dtype], device=device)
        self._codes = torch.empty(shapes["codes"], dtype=torch.uint8, device=device)
        self._scales = torch.empty(shapes["scales"], dtype=torch.float32, device=device)
        self._scales[:4] = 1
        sums = torch.empty(shapes["sums"], dtype=torch.float32, device=device)
        self._exchange = Exchange(sums, torch.zeros(shapes["told"], dtype=torch.int32, device=device))

    @property
    def num_bytes(self) -> int:
        """Of the scratch."""
        tensors = self._dense, self._codes, self._scales, self._exchange.sums, self._exchange.told
        return sum(each.nbytes for each in tensors)

    def fuses(self, num_rows: int) -> Callable[[Linear, bool], bool]:
        """Whether a product of so many rows, with a gate or without, takes what surrounds it."""

        def fuses(weight: Linear, gated: bool) -> bool:
            form = self._formats.get(weight.name)
            if form is None:
                return weight.name not in self._coded and weight.name not in self._sorted
            kind, depth = scales_of(form), weight.in_features
            if num_rows > most_few_code_rows(form, self._dtype, self._gpu):
                return False
            if LAYOUTS[form.code] == "int4":
                group = form.block[1] if kind == "groups" else 0
                given = group, depth, num_rows, self._gpu
                return Tiling.of(*given, has_zeros=form.has_zeros, is_gated=gated) is not None
            most = most_few_rows(scaled_rows(weight, self._dtype, self._gpu))
            return num_rows <= most and fits(kind, num_rows, depth, self._gpu, is_gated=gated)

        return fuses

    def quantises(self, num_rows: int) -> Callable[[Linear], bool]:
        """Whether rows become fp8 before a product in a program for so many, and in one kernel with what gives them."""

        def quantises(weight: Linear) -> bool:
            return weight.name in self._formats and become_codes(weight, num_rows, self._dtype, self._gpu)

        return quantises

    def deals(self, num_rows: int) -> Callable[[Linear], bool]:
        """Whether a product in a program for so many rows reads such whose inputs are dealt, if they are not fewer."""

        def deals(weight: Linear) -> bool:
            form = self._formats.get(weight.name)
            is_wide = form is not None and multiplies_wide(form, self._dtype, self._gpu)
            return form is not None and is_wide and num_rows > most_few_code_rows(form, self._dtype, self._gpu)

        return deals

    def product(self, weight: Linear, weights: DeviceWeights) -> Product | None:
        """None: the matrix is dense."""
        if weight.name in self._sorted:
            return self._ordered_product(weight, weights)
        form, pieces = self._formats.get(weight.name), self._coded.get(weight.name, ())
        if form is None and not pieces:
            return None
        bias = weights.stacked(*weight.biases) if weight.biases else None
        by = scaled_rows(weight, self._dtype, self._gpu)
        scaled = None if by is None else _SCALED[by]
        if form is None:
            stacks = tuple(weights.coded(*piece) for piece in pieces)
            return CodedProduct(stacks, bias, self._dense, self._codes, self._scales[4:], self._gpu, scaled)
        return self._of_weight(weights.quantized(weight.parts, form), form, bias, scaled)

    def _of_weight(
        self, held: QuantizedWeight, form: ScaledFormat, bias: torch.Tensor | None, scaled: ScaledProduct | None = None
    ) -> QuantizedProduct:
        exchange = self._exchange if multiplies_wide(form, self._dtype, self._gpu) else None
        if exchange is not None:
            prepare(held, TORCH_DTYPE[self._dtype], self._gpu)
        scratch = self._dense, self._codes, self._scales[4:], self._gpu
        return QuantizedProduct(held, bias, *scratch, scaled, one=self._scales[:1].squeeze(0), exchange=exchange)

    def _ordered_product(self, weight: Linear, weights: DeviceWeights) -> Product:
        form = self._sorted[weight.name]
        ordered = weights.ordered(weight.parts, form)
        whole = weights.stacked(*weight.biases) if weight.biases else None
        counts = [each.matrix.columns for each in ordered]
        biases = [None] * len(counts) if whole is None else whole.split(counts)
        products = tuple(self._of_weight(own.matrix, form, bias) for own, bias in zip(ordered, biases, strict=True))
        room = self._dense[weight.out_features * weight.in_features :]
        return OrderedProduct(products, ordered, room, self._gpu)
