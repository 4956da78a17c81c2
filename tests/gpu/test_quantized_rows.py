"""Quantised weights made dense, and rows made fp8, against the host's arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, needs_gpu, relative_error  # isort: split

from octavo.kernels.cuda import quantized_product
from octavo.kernels.cuda.driver import GPU, find_gpu
from octavo.kernels.cuda.plain_codes import PlainCodes
from octavo.kernels.cuda.sizes import ROWS_AT_ONCE, become_codes, scaled_rows, scratch_shapes
from octavo.kernels.cuda_cpp.compile import find_nvcc
from octavo.kernels.cuda_cpp.dequantise import dequantise
from octavo.kernels.cuda_cpp.quantized_format import why_not
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight
from octavo.kernels.kv_layout import KVDType
from octavo.kernels.parameters import Linear
from octavo.kernels.reference.scaled import dequantize_scaled
from octavo.kernels.scaled import ScaledFormat, ScaledTensor
from octavo.kernels.triton.linear.quantized import (
    deal_inputs,
    deal_spans,
    fp8_block_product,
    quantise_row_blocks,
    quantise_rows,
)
from octavo.quantization.at_load import QuantisedAtLoad, quantised
from octavo.testing import made_parameters
from tests.gpu.quantized_matrix import FORMATS, random_matrix

SHAPE = (128, 512)


@needs_gpu
@pytest.mark.skipif(find_nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.label)
def test_a_stack_made_dense_has_its_numbers(form: ScaledFormat) -> None:
    """tests/kernels/test_dequantise.py asks the same of a CPU."""
    dtype = torch.float16 if form.has_zeros else torch.bfloat16
    assert why_not(form, *SHAPE) is None
    gpu = find_gpu(0)
    assert gpu is not None
    parts = [random_matrix(form, SHAPE, seed) for seed in (1, 2)]
    out = torch.full((2 * SHAPE[0], SHAPE[1]), torch.nan, device=DEVICE, dtype=dtype)
    dequantise(QuantizedWeight.of([PlainCodes.of(part, DEVICE) for part in parts], form, dtype), out, gpu=gpu)
    expected = np.concatenate([np.array(dequantize_scaled(part)).reshape(SHAPE) for part in parts])
    assert torch.equal(out.cpu(), torch.from_numpy(expected).to(dtype))


def test_inputs_are_dealt() -> None:
    x = torch.randn(5, 2 * 1024 + 96, device=DEVICE).to(torch.bfloat16)[:, 32:]
    out = torch.full((5, x.shape[1]), torch.nan, device=DEVICE, dtype=torch.bfloat16)
    deal_inputs(x, out)
    assert torch.equal(out.view(5, -1, 4, 4, 2), x.reshape(5, -1, 4, 4, 2).transpose(2, 3))


def test_spans_are_dealt_and_end_with_zeros() -> None:
    x = torch.randn(3, 1024 + 96, device=DEVICE).to(torch.bfloat16)
    out = torch.full((3, 1024 + 128), torch.nan, device=DEVICE, dtype=torch.bfloat16)
    deal_spans(x, out)
    spans = torch.nn.functional.pad(x, (0, 32)).view(3, -1, 4, 8, 2, 2)  # q, s, b, e
    assert torch.equal(out.view(3, -1, 8, 2, 4, 2), spans.permute(0, 1, 3, 5, 2, 4))


@pytest.mark.parametrize("form", [form for form in FORMATS if not form.has_zeros], ids=lambda form: form.label)
def test_the_device_quantises_as_the_host_does(form: ScaledFormat) -> None:
    matrix = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    matrix[3] = 0
    host = QuantizedWeight.of([PlainCodes.of(quantised(matrix, form), DEVICE)], form, torch.bfloat16)
    drawn = PlainCodes.quantise(torch.from_numpy(matrix).to(DEVICE), form)
    own = QuantizedWeight.of([drawn], form, torch.bfloat16)
    assert torch.equal(own.scales, host.scales)
    assert torch.equal(own.data.view(torch.uint8), host.data.view(torch.uint8))


@needs_gpu  # the interpreter cuts bits off where a GPU rounds
def test_a_row_in_fp8_is_near_the_row() -> None:
    x = torch.randn(5, 384, device=DEVICE).to(torch.bfloat16)
    x[2] = 0
    x[3] *= 1e-3
    codes = torch.empty(5, 384, device=DEVICE, dtype=torch.float8_e4m3fn)
    scales = torch.empty(5, 1, device=DEVICE)
    quantise_rows(x, codes, scales)
    error = (codes.float() * scales - x.float()).abs()
    largest = x.float().abs().amax(1, keepdim=True)
    assert (error <= torch.maximum(x.float().abs() / 16, largest / 448 * 2**-10) * 1.001).all()
    assert codes[2].float().abs().max() == 0


def row_codes(x: torch.Tensor, width: int, **before: Any) -> torch.Tensor:
    """The numbers of rows that became fp8."""
    codes = torch.empty(len(x), width, device=DEVICE, dtype=torch.float8_e4m3fn)
    scales = torch.empty(len(x), 1, device=DEVICE)
    quantise_rows(x, codes, scales, **before)
    return codes.float() * scales


@needs_gpu
@pytest.mark.parametrize("width", [256, 384])
def test_rows_become_fp8_where_a_norm_or_an_activation_gives_them(width: int) -> None:
    x, residual = (torch.randn(5, width, device=DEVICE).to(torch.bfloat16) for _ in range(2))
    weight, total = torch.rand(width, device=DEVICE) + 0.5, residual.clone()
    step = 0.03  # e4m3 has 4 bits
    normed = torch.nn.functional.rms_norm(x.float(), [width], weight, 1e-5)
    assert relative_error(row_codes(x, width, norm_weight=weight, eps=1e-5), normed) < step
    codes = row_codes(x, width, norm_weight=weight, eps=1e-5, total=total)
    assert torch.equal(total, x + residual)
    assert relative_error(codes, torch.nn.functional.rms_norm(total.float(), [width], weight, 1e-5)) < step
    gate, up = torch.randn(2, 5, width, device=DEVICE).to(torch.bfloat16)
    gated = torch.nn.functional.silu(gate.float()) * up.float()
    assert relative_error(row_codes(torch.cat([gate, up], 1), width, activation="silu"), gated) < step


@needs_gpu
def test_scales_that_a_product_left_are_made_up_for() -> None:
    width, step = 384, 0.03
    columns, own = torch.rand(2 * width, device=DEVICE) + 0.5, torch.rand(5, 1, device=DEVICE) + 0.5
    x = torch.randn(5, 2 * width, device=DEVICE).to(torch.bfloat16)
    gate, up = (x.float() * own * columns).chunk(2, 1)
    codes, scales = torch.empty(5, width, device=DEVICE, dtype=torch.float8_e4m3fn), own.clone()
    quantise_rows(x, codes, scales, activation="silu", column_scales=columns)
    assert relative_error(codes.float() * scales, torch.nn.functional.silu(gate) * up) < step
    scales, weight = own.clone(), torch.rand(width, device=DEVICE) + 0.5
    total = torch.randn(5, width, device=DEVICE).to(torch.bfloat16)
    expected = total.float() + gate
    quantise_rows(x[:, :width], codes, scales, norm_weight=weight, eps=1e-5, total=total, column_scales=columns)
    assert relative_error(total, expected) < 0.004
    normed = torch.nn.functional.rms_norm(total.float(), [width], weight, 1e-5)
    assert relative_error(codes.float() * scales, normed) < step


@needs_gpu
@pytest.mark.parametrize("width", [4100, 14336])
def test_long_rows_are_activated_in_parts(width: int) -> None:
    columns, own = torch.rand(2 * width, device=DEVICE) + 0.5, torch.rand(140, 1, device=DEVICE) + 0.5
    x = torch.randn(140, 2 * width, device=DEVICE).to(torch.bfloat16)
    x[3] = 0
    gate, up = (x.float() * own * columns).chunk(2, 1)
    codes, scales = torch.empty(140, width, device=DEVICE, dtype=torch.float8_e4m3fn), own.clone()
    quantise_rows(x, codes, scales, activation="silu", column_scales=columns)
    expected = torch.nn.functional.silu(gate) * up
    assert relative_error(codes.float() * scales, expected) < 0.03
    assert torch.allclose(scales[:3, 0] * 448, expected.abs().amax(1)[:3], rtol=0.01)
    assert codes[3].float().abs().max() == 0
    few_codes, few_scales = codes[:9].clone(), own[:9].clone()
    quantise_rows(x[:9], few_codes, few_scales, activation="silu", column_scales=columns)
    assert relative_error(few_codes.float() * few_scales, codes[:9].float() * scales[:9]) < 0.03, "whole, and in parts"


@needs_gpu
def test_each_block_of_a_row_in_fp8_is_near_the_row() -> None:
    x = torch.randn(5, 3 * 1024 + 128, device=DEVICE).to(torch.bfloat16)
    x[2, 128:] = 0
    x[:, 256:] *= 1e-3
    codes = torch.empty(x.shape, device=DEVICE, dtype=torch.float8_e4m3fn)
    scales = torch.empty(25, 5, device=DEVICE)
    quantise_row_blocks(x, codes, scales)
    blocks = x.float().unflatten(1, (-1, 128))
    error = (codes.float().unflatten(1, (-1, 128)) * scales.t()[..., None] - blocks).abs()
    largest = blocks.abs().amax(2, keepdim=True)
    assert (error <= torch.maximum(blocks.abs() / 16, largest / 448 * 2**-10) * 1.001).all()


def test_few_rows_are_multiplied_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel for few rows, for which torch stands here; what gives the rows is computed before it."""
    form, rows, depth = ScaledFormat("F8_E4M3", (1, 0)), 5, 512
    tensor = random_matrix(form, (128, depth), size=depth**-0.5)
    weight, dense = QuantizedWeight.of([PlainCodes.of(tensor, DEVICE)], form, torch.bfloat16), dense_of(tensor)

    def few(x: torch.Tensor, _: object, out: torch.Tensor, *, norm_weight: Any, eps: float, **fused: Any) -> None:
        y = x.float()
        if norm_weight is not None:
            y = torch.nn.functional.rms_norm(y, [depth], norm_weight, eps)
        out.copy_(y @ dense.t())

    monkeypatch.setattr(quantized_product, "quantized_linear", few)
    room = torch.empty(32 * depth, dtype=torch.uint8, device=DEVICE)
    gpu = GPU("a GPU", (9, 0) if ON_GPU else (8, 0), 1 << 34, 132)
    product = quantized_product.QuantizedProduct(weight, None, room, room, room, gpu, None, room)
    x, residual = (torch.randn(rows, depth, device=DEVICE).to(torch.bfloat16) for _ in range(2))
    norm, total = torch.rand(depth, device=DEVICE) + 0.5, residual.clone()
    out = torch.empty(rows, 128, device=DEVICE, dtype=torch.bfloat16)
    product.run_quantising(x, out, norm_weight=norm, eps=1e-5, total=total, leaves_scales=True, left_by=product)
    assert relative_error(total, x.float() + residual.float()) < 0.01  # the interpreter cuts bits off
    normed = torch.nn.functional.rms_norm(total.float(), [depth], norm, 1e-5)
    assert relative_error(out, normed @ dense.t()) < 0.01
    product.run_quantising(torch.cat([x, residual], 1), out, activation="silu", left_by=product)
    gated = torch.nn.functional.silu(x.float()) * residual.float()
    assert relative_error(out, gated @ dense.t()) < 0.01


def in_blocks(x: torch.Tensor) -> torch.Tensor:
    """Rows as the product has them: in fp8, with a scale for each 128 inputs."""
    codes = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty(x.shape[1] // 128, len(x), device=DEVICE)
    quantise_row_blocks(x, codes, scales)
    return (codes.float().unflatten(1, (-1, 128)) * scales.t()[..., None]).flatten(1)


def block_product(x: torch.Tensor, tensor: ScaledTensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    weight = QuantizedWeight.of([PlainCodes.of(tensor, DEVICE)], tensor.format, torch.bfloat16)
    room, out = max(len(x), ROWS_AT_ONCE) * x.shape[1], x.new_full((len(x), tensor.rows), torch.nan)
    codes, scales = torch.empty(room, dtype=torch.uint8, device=DEVICE), torch.empty(room // 128, device=DEVICE)
    fp8_block_product(x, weight.data, weight.scales, bias, out, codes, scales, chained=False)
    return out


def dense_of(tensor: ScaledTensor) -> torch.Tensor:
    return torch.from_numpy(np.array(dequantize_scaled(tensor)).reshape(tensor.shape)).to(DEVICE)


IN_BLOCKS = ScaledFormat("F8_E4M3", (128, 128))
needs_hopper = pytest.mark.skipif(
    not ON_GPU or torch.cuda.get_device_capability() != (9, 0), reason="a library's product on sm_90"
)


@needs_hopper
@pytest.mark.parametrize("rows", [1, 2, 3, 17, 64, 65, 130, 1000])
def test_a_matrix_in_blocks_times_rows_in_blocks(rows: int) -> None:
    tensor = random_matrix(IN_BLOCKS, (384, 1536), size=1536**-0.5)
    x = torch.randn(rows, 1536, device=DEVICE).to(torch.bfloat16)
    bias, dense = torch.randn(384, device=DEVICE).to(torch.bfloat16), dense_of(tensor)
    out = block_product(x, tensor, bias)
    assert relative_error(out, in_blocks(x) @ dense.t() + bias.float()) < 0.006
    assert relative_error(out, x.float() @ dense.t() + bias.float()) < 0.04


@needs_hopper
def test_a_row_or_a_scale_of_any_size_leaves_the_others_right() -> None:
    """Rows of zeros, of hardly more and of much more; scales of nothing; and a row that is broken already."""
    tensor = random_matrix(IN_BLOCKS, (512, 1536), size=1536**-0.5)
    tensor.scales[:3] *= np.array([0, 1e-30, 1e-37], np.float32)[:, None]
    x, dense = torch.randn(19, 1536, device=DEVICE).to(torch.bfloat16), dense_of(tensor)
    x[1], x[2, 128:] = 0, 0
    x[3:18] *= torch.logspace(-39, 4, 15, device=DEVICE)[:, None]
    x[18, 700] = torch.nan
    out, expected = block_product(x, tensor).float(), x.float() @ dense.t()
    assert out[18].isnan().all()
    error, size = ((of[:18].unflatten(1, (4, 128))).norm(dim=2) for of in (out - expected, expected))
    assert (error <= 0.05 * size + 1e-30).all()


def linear_of(form: ScaledFormat, *shape: int) -> Linear:
    part = made_parameters.parameter(np.zeros(shape, np.float32))
    return Linear((replace(part, scheme=QuantisedAtLoad(form, "fp8")),))


def test_a_library_takes_blocks_where_it_can() -> None:
    hopper, older = (GPU("a GPU", capability, 1 << 34, 132) for capability in ((9, 0), (8, 9)))
    fits, narrow, short = (linear_of(IN_BLOCKS, *shape) for shape in ((256, 1024), (192, 1024), (256, 640)))
    assert scaled_rows(fits, "bfloat16", hopper) == "blocks"
    for other, dtype, gpu in ((narrow, "bfloat16", hopper), (short, "bfloat16", hopper), (fits, "float16", hopper)):
        assert scaled_rows(other, dtype, gpu) is None
    assert scaled_rows(fits, "bfloat16", older) is None
    few = {"dense": 192 * 1024, "codes": 32 * 1024, "scales": 4 + 32 * 8}
    few |= {"sums": 132 * 256 * 128, "told": 133}
    assert scratch_shapes([fits, narrow], 10, "bfloat16", hopper) == few
    assert scratch_shapes([fits], 40, "bfloat16", hopper) == few | {"dense": 40960, "codes": 40960, "scales": 324}
    assert scratch_shapes([fits], 400, "bfloat16", hopper)["dense"] == 64 * 1024, "of rows that meet bfloat16"


@pytest.mark.parametrize(
    ("form", "dtype", "capability", "is_wide"),
    [
        (ScaledFormat("U4", (1, 128)), "bfloat16", (9, 0), True),
        (ScaledFormat("U4", (1, 128), has_zeros=True), "float16", (9, 0), True),
        (ScaledFormat("U4", (1, 128)), "bfloat16", (8, 0), False),
        (ScaledFormat("I8", (1, 0)), "float16", (9, 0), True),
        (ScaledFormat("F8_E4M3", (1, 0)), "bfloat16", (9, 0), False),
    ],
)
def test_blocks_have_room_to_exchange_sums_where_codes_meet_many_rows(
    form: ScaledFormat, dtype: KVDType, capability: tuple[int, int], is_wide: bool
) -> None:
    gpu = GPU("a GPU", capability, 1 << 34, 132)
    shapes = scratch_shapes([linear_of(form, 256, 1024)], 10, dtype, gpu)
    assert (shapes["sums"], shapes["told"]) == ((132 * 256 * 128, 133) if is_wide else (0, 1))


def test_rows_that_are_gathered_have_room_beside_a_matrix_that_is_made_dense() -> None:
    gpu = GPU("a GPU", (9, 0), 1 << 34, 132)
    linear = linear_of(ScaledFormat("U4", (1, 128), is_sorted=True), 256, 1024)
    assert scratch_shapes([linear], 10, "float16", gpu)["dense"] == (256 + 10) * 1024


def test_more_than_four_rows_become_fp8() -> None:
    """Of matrices that a library multiplies then, and not by a GPU that lacks fp8."""
    hopper, ampere = (GPU("a GPU", capability, 1 << 34, 132) for capability in ((9, 0), (8, 0)))
    by_output, in_blocks = (linear_of(form, 256, 1024) for form in (ScaledFormat("F8_E4M3", (1, 0)), IN_BLOCKS))
    rows = (1, 4, 5, 16, 17)
    assert [become_codes(by_output, count, "bfloat16", hopper) for count in rows] == [False, False, True, True, True]
    for other, dtype, gpu in (
        (in_blocks, "bfloat16", hopper),
        (by_output, "float16", hopper),
        (by_output, "bfloat16", ampere),
    ):
        assert not any(become_codes(other, count, dtype, gpu) for count in rows)
