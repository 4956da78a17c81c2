"""Products of experts with many rows each, in CUDA C++, against torch in float32: lists of any length."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import torch

from tests.gpu.device import ON_GPU, TOLERANCE, relative_error

from octavo.kernels.cuda.driver import find_gpu  # isort: skip
from octavo.kernels.cuda_cpp.compile import find_nvcc  # isort: skip
from octavo.kernels.cuda.sizes import padded_inputs  # isort: skip
from octavo.kernels.cuda_cpp.grouped_codes import TILES, CodesTile, multiply_codes  # isort: skip
from octavo.kernels.cuda_cpp.grouped_linear import WideProducts  # isort: skip
from octavo.kernels.triton.linear.quantized import deal_spans  # isort: skip
from octavo.kernels.mixture import SILU, Gate  # isort: skip
from octavo.kernels.reference.mixture import gated  # isort: skip
from octavo.kernels.cuda_cpp.expert_format import why_not_wide_codes  # isort: skip
from octavo.kernels.scaled import ScaledFormat  # isort: skip
from octavo.kernels.triton.coded.weight_stack import WeightStack  # isort: skip
from octavo.kernels.triton.experts.mixture import mixture  # isort: skip
from tests.gpu.test_coded_mixture import FORMATS, coded_experts, stack_of  # isort: skip
from tests.gpu.test_mixture import CASES, HIDDEN, INNER, in_torch, room_for  # isort: skip

if TYPE_CHECKING:
    from octavo.kernels.triton.experts.room import Room

if not ON_GPU or find_nvcc() is None:
    pytest.skip("needs a GPU and nvcc", allow_module_level=True)

CODES = [
    *(ScaledFormat("E2M1", (1, 32)), ScaledFormat("U4", (1, 64), has_zeros=True), ScaledFormat("U4", (1, 128))),
    *(ScaledFormat("I8", (1, 128)), ScaledFormat("F8_E4M3", (128, 128))),
]
COUNTS = [0, 1, 128, 131, 0, 64, 700, 2]
ROWS_OF = 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gate", [None, SILU, Gate("clamped", limit=1.0), Gate("gelu"), Gate("gelu_tanh")])
@pytest.mark.parametrize(("columns", "depth"), [(768, 2048), (96, 320), (32, 48), (416, 2880)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_equals_torch(columns: int, depth: int, gate: Gate | None, has_bias: bool, dtype: torch.dtype) -> None:
    x, matrices, bias = made(columns, depth, gate, has_bias=has_bias, dtype=dtype)
    room, pairs = lists()
    out = torch.full((sum(COUNTS), columns), torch.nan, device="cuda", dtype=dtype)
    products(dtype).run(x, WeightStack.dense(matrices), bias, out, room, rows_of=ROWS_OF, gate=gate)
    assert relative_error(out, product_in_torch(x.float(), matrices.float(), bias, pairs, gate)) < TOLERANCE[dtype]


@pytest.mark.parametrize("gate", [None, SILU])
@pytest.mark.parametrize(("columns", "depth"), [(768, 2048), (96, 352)])
def test_fp8_rows_and_experts(columns: int, depth: int, gate: Gate | None) -> None:
    """Scales are of rows and of outputs. Sums of such products keep fewer bits than float32."""
    x, matrices, bias = made(columns, depth, gate, has_bias=True, dtype=torch.float32)
    room, pairs = lists()
    row_scales, scales = x.abs().amax(1) / 448, matrices.abs().amax(2) / 448
    x, codes = (x / row_scales[:, None]).to(torch.float8_e4m3fn), (matrices / scales[..., None]).to(torch.float8_e4m3fn)
    stack = WeightStack(
        (len(COUNTS), codes.shape[1], depth), codes.view(torch.uint8).flatten(0, 1), "F8_E4M3",
        scales.flatten()[:, None].contiguous(), None, depth,
    )  # fmt: skip
    biases = None if bias is None else bias.bfloat16()
    out = torch.full((sum(COUNTS), columns), torch.nan, device="cuda", dtype=torch.bfloat16)
    products(torch.bfloat16).run(
        x, stack, biases, out, room, rows_of=ROWS_OF, row_scales=row_scales, gate=gate
    )  # fmt: skip
    expected = product_in_torch(x.float() * row_scales[:, None], codes.float() * scales[..., None], biases, pairs, gate)
    assert relative_error(out, expected) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("form", CODES, ids=lambda form: form.label)
def test_codes(form: ScaledFormat, is_gated: bool, tile: CodesTile, dtype: torch.dtype) -> None:
    """Tiles that are not whole; results of a gate are dealt, and zeros follow them. The gates are those of the mixtures
    below, whose kernels are the same."""
    gate = None if not is_gated else Gate("clamped", limit=1.0) if form.code == "E2M1" else SILU
    gpu, columns, depth = products(dtype).gpu, 384 if form.block[0] > 1 else 416, 896
    outputs = columns if gate is None else 2 * columns
    coded, dense = stack_of(form, len(COUNTS), outputs, depth, num_parts=1)
    (room, pairs), bias = lists(), torch.randn(len(COUNTS), outputs, device="cuda").to(dtype)
    x = torch.randn(-(-sum(COUNTS) // ROWS_OF), depth, device="cuda").to(dtype)
    width = columns if gate is None else padded_inputs(columns)
    out = torch.full((sum(COUNTS), width), torch.nan, device="cuda", dtype=dtype)
    multiply_codes(dealt(x), coded, bias, out, room, rows_of=ROWS_OF, gpu=gpu, gate=gate, tile=tile)
    expected = product_in_torch(x.float(), dense.data.float(), bias, pairs, gate)
    assert relative_error(out, expected if gate is None else dealt(expected.to(dtype))) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", CODES[2:], ids=lambda form: form.label)
def test_scales_of_16_bits(form: ScaledFormat, dtype: torch.dtype) -> None:
    """They take fewer instructions."""
    coded, _ = stack_of(form, len(COUNTS), 384, 896, num_parts=1)
    assert coded.scales is not None
    assert not coded.scale_types
    rounded = replace(coded, scales=coded.scales.to(dtype).float())
    x, (room, _) = torch.randn(-(-sum(COUNTS) // ROWS_OF), 896, device="cuda").to(dtype), lists()
    results = []
    for types in (frozenset[torch.dtype](), frozenset({dtype})):
        out = torch.full((sum(COUNTS), 384), torch.nan, device="cuda", dtype=dtype)
        weight = replace(rounded, scale_types=types)
        multiply_codes(dealt(x), weight, None, out, room, rows_of=ROWS_OF, gpu=products(dtype).gpu, tile=TILES[0])
        results.append(out)
    assert relative_error(results[1], results[0].float()) < TOLERANCE[dtype]


def dealt(x: torch.Tensor) -> torch.Tensor:
    out = torch.full((len(x), padded_inputs(x.shape[1])), torch.nan, device="cuda", dtype=x.dtype)
    deal_spans(x, out)
    return out


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.label)
@pytest.mark.parametrize(("num_rows", "dtype"), [(40, torch.float16), (300, torch.bfloat16), (2000, torch.bfloat16)])
def test_a_mixture_of_codes(form: ScaledFormat, num_rows: int, dtype: torch.dtype) -> None:
    """Codes become 16 bits on their way; the few experts of a test have many rows each."""
    why = [why_not_wide_codes(form, depth) for depth in (HIDDEN, INNER)]
    if any(why):
        pytest.skip(str(why))
    case = CASES["gpt-oss"] if form.code == "E2M1" else CASES["mixtral"]
    coded, dense = coded_experts(case, form, dtype)
    room, wide = room_for(case, dtype), products(dtype)
    wide.prepare((coded.gate_up, coded.gate_up_bias), (coded.down, coded.down_bias), coded.layer.gate)
    x = torch.randn(num_rows, HIDDEN, device="cuda", dtype=dtype)
    out = torch.full_like(x, torch.nan)
    mixture(x, None, out, coded, room, chained=True, wide=wide)
    is_fp8 = coded.gate_up.code == "F8_E4M3" and coded.gate_up.scales_outputs
    assert relative_error(out, in_torch(x, dense, room)) < (0.06 if is_fp8 else 3 * TOLERANCE[dtype])


def products(dtype: torch.dtype) -> WideProducts:
    gpu = find_gpu(0)
    assert gpu is not None
    return WideProducts(gpu, dtype)


def made(
    columns: int, depth: int, gate: Gate | None, *, has_bias: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    outputs = columns if gate is None else 2 * columns
    matrices = torch.randn(len(COUNTS), outputs, depth, device="cuda") * depth**-0.5
    bias = torch.randn(len(COUNTS), outputs, device="cuda").to(dtype) if has_bias else None
    return torch.randn(-(-sum(COUNTS) // ROWS_OF), depth, device="cuda").to(dtype), matrices.to(dtype), bias


def lists() -> tuple[Room, tuple[torch.Tensor, ...]]:
    """Each expert's pairs, as the router leaves them."""
    pairs = torch.randperm(sum(COUNTS), device="cuda").int().split(COUNTS)
    order = torch.zeros(len(COUNTS), max(COUNTS), dtype=torch.int32, device="cuda")
    for expert, pair in enumerate(pairs):
        order[expert, : len(pair)] = pair
    counts = torch.tensor(COUNTS, dtype=torch.int32, device="cuda")
    return cast("Room", SimpleNamespace(counts=counts, order=order, max_rows=max(COUNTS))), pairs


def product_in_torch(
    x: torch.Tensor, matrices: torch.Tensor, bias: torch.Tensor | None, pairs: tuple[torch.Tensor, ...],
    gate: Gate | None,
) -> torch.Tensor:  # fmt: skip
    out = torch.empty(sum(COUNTS), matrices.shape[1], device="cuda")
    for expert, pair in enumerate(pairs):
        out[pair.long()] = x[pair.long() // ROWS_OF] @ matrices[expert].T
        if bias is not None:
            out[pair.long()] += bias[expert].float()
    return out if gate is None else gated(out, gate)
