"""Mixtures whose experts are codes with scales, against torch with the numbers that these stand for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, needs_gpu, relative_error

from octavo.kernels.cuda.driver import find_gpu  # isort: skip
from octavo.kernels.cuda.plain_codes import PlainCodes  # isort: skip
from octavo.kernels.cuda_cpp import fp4_experts  # isort: skip
from octavo.kernels.cuda_cpp.expert_format import why_not_codes  # isort: skip
from octavo.kernels.reference.scaled import dequantize_scaled  # isort: skip
from octavo.kernels.scaled import ScaledFormat  # isort: skip
from octavo.kernels.triton.coded.coded_format import CODED, held_bytes, why_not  # isort: skip
from octavo.kernels.triton.coded.weight_stack import WeightStack  # isort: skip
from octavo.kernels.triton.experts.mixture import Experts, mixture  # isort: skip
from tests.gpu import test_mixture  # isort: skip
from tests.gpu.quantized_matrix import random_matrix  # isort: skip
from tests.gpu.test_mixture import (  # isort: skip
    CASES,
    DTYPES,
    FEW_ROWS,
    HIDDEN,
    INNER,
    NUM_ROWS,
    Case,
    few_rows,
    in_torch,
    made,
    needs_nvcc,
    room_for,
)

FORMATS = [
    *(ScaledFormat("F8_E4M3", block) for block in ((0, 0), (1, 0), (128, 128))),
    *(ScaledFormat("I8", (1, 0)), ScaledFormat("I8", (1, 32), has_zeros=True)),
    *(ScaledFormat("U4", (1, 0)), ScaledFormat("U4", (1, 32)), ScaledFormat("U4", (1, 64), has_zeros=True)),
    *(ScaledFormat("U4", (1, 128)), ScaledFormat("E2M1", (1, 32)), ScaledFormat("NF4", (1, 32))),
    *(ScaledFormat("IQ4_NL", (1, 32)), ScaledFormat("U4", (1, 32), has_zeros=True, is_sorted=True)),
]
ROWS = NUM_ROWS if ON_GPU else [1, 5]
COMPUTED = [torch.bfloat16] if ON_GPU else DTYPES


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.label)
def test_it_equals_torch(form: ScaledFormat, num_rows: int) -> None:
    assert {each.code for each in FORMATS} == set(CODED)
    for dtype in COMPUTED:
        case = CASES["gpt-oss"] if form.code == "E2M1" else CASES["mixtral"]
        coded, dense = coded_experts(case, form, dtype)
        room = room_for(case, dtype)
        x = torch.randn(num_rows, HIDDEN, device=DEVICE).to(dtype)
        out, is_fp8 = torch.full_like(x, torch.nan), form.code == "F8_E4M3" and num_rows > 32
        for is_fixed in (False, True):
            mixture(x, None, out, coded, room, is_fixed=is_fixed, chained=False)
            allowed = 0.06 if is_fp8 and not is_fixed else 3 * TOLERANCE[dtype]
            assert relative_error(out, in_torch(x, dense, room)) < allowed
        assert not room.counts.any()


@needs_nvcc
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.label)
def test_few_rows_in_cuda(form: ScaledFormat) -> None:
    if why_not_codes(form, INNER, HIDDEN) or why_not_codes(form, HIDDEN, INNER):
        pytest.skip("not taken")
    few_rows_equal_torch(CASES["gpt-oss"] if form.code == "E2M1" else CASES["mixtral"], form, FEW_ROWS)


@needs_nvcc
@pytest.mark.parametrize("name", CASES)
def test_one_row_of_mxfp4_in_cuda(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel for large experts."""
    monkeypatch.setattr(fp4_experts, "LEAST_INPUTS", 0)
    few_rows_equal_torch(CASES[name], ScaledFormat("E2M1", (1, 32)), [1, 2])


@needs_nvcc
def test_one_row_of_large_mxfp4_in_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """At gpt-oss's sizes, several times on end, in place, with some blocks that have no expert's logits."""
    for module in (test_mixture, sys.modules[__name__]):
        monkeypatch.setattr(module, "HIDDEN", 2880)
        monkeypatch.setattr(module, "INNER", 2880)
    case, dtype, gpu = CASES["gpt-oss"], torch.bfloat16, find_gpu(0)
    coded, dense = coded_experts(case, ScaledFormat("E2M1", (1, 32)), dtype)
    room, norm = room_for(case, dtype), torch.rand(2880, device=DEVICE) + 0.5
    assert gpu is not None
    kernel = fp4_experts.Fp4Experts.of(coded, room, gpu, dtype)
    assert kernel is not None
    x = torch.randn(1, 2880, device=DEVICE).to(dtype)
    for _ in range(4):
        out = x.clone()
        kernel.run(out, out, out, norm=norm, eps=1e-5)
        normed = torch.nn.functional.rms_norm(x.float(), [2880], norm, 1e-5).to(dtype)
        expected = x.float() + in_torch(normed, dense, room, room.logits[:1, : len(dense.router)])
        assert relative_error(out, expected) < 6e-3
        x = torch.nn.functional.rms_norm(out.float(), [2880]).to(dtype)


@needs_gpu  # the interpreter cuts bits off where a GPU rounds
def test_rows_in_fp8_give_nearly_the_same() -> None:
    """The fp8 product of many rows against the product of the same numbers."""
    case, form = CASES["mixtral"], ScaledFormat("F8_E4M3", (1, 0))
    coded, dense = coded_experts(case, form, torch.bfloat16)
    x, room = torch.randn(200, HIDDEN, device=DEVICE, dtype=torch.bfloat16), room_for(case, torch.bfloat16)
    out = torch.empty_like(x)
    mixture(x, None, out, coded, room, chained=True)
    assert relative_error(out, in_torch(x, dense, room)) < 0.06


def test_exponents_are_of_units_where_an_output_has_one_unit() -> None:
    """Else a kernel would take the exponent's byte for the scale of the whole output."""
    coded, _ = stack_of(ScaledFormat("E2M1", (1, 32)), 1, 8, 32)
    assert coded.constants["GROUP"] == 32


def few_rows_equal_torch(case: Case, form: ScaledFormat, counts: Sequence[int]) -> None:
    """Without the norm and a residual, and with them."""
    for dtype in (torch.bfloat16, torch.float16):
        coded, dense = coded_experts(case, form, dtype)
        room, norm = room_for(case, dtype), torch.rand(HIDDEN, device=DEVICE) + 0.5
        few = few_rows(coded, room, dtype)
        for num_rows in counts:
            x = torch.randn(num_rows, HIDDEN, device=DEVICE).to(dtype)
            out = torch.full_like(x, torch.nan)
            few.run(x, None, out)
            assert relative_error(out, in_torch(x, dense, room)) < 3 * TOLERANCE[dtype]
            few.run(x, x, out, norm=norm)
            normed, logits = torch.nn.functional.rms_norm(x.float(), [HIDDEN], norm, 1e-6).to(dtype), room.logits
            expected = x.float() + in_torch(normed, dense, room, logits[:num_rows, : len(dense.router)])
            assert relative_error(out, expected) < 3 * TOLERANCE[dtype]


def coded_experts(case: Case, form: ScaledFormat, dtype: torch.dtype) -> tuple[Experts, Experts]:
    """And the same with dense numbers."""
    dense, count = made(case, dtype), case.routing.num_experts
    gate_up = stack_of(form, count, 2 * INNER, HIDDEN)
    down = stack_of(form, count, HIDDEN, INNER, num_parts=1 if form.is_sorted else 2)
    coded = replace(dense, gate_up=gate_up[0], down=down[0])
    return coded, replace(dense, gate_up=gate_up[1], down=down[1])


def stack_of(
    form: ScaledFormat, experts: int, outputs: int, inputs: int, num_parts: int = 2
) -> tuple[WeightStack, WeightStack]:
    """Matrices in parts, and their numbers."""
    assert why_not(form, inputs) is None
    shapes = [(outputs // num_parts, inputs)] * (num_parts * experts)
    parts = [random_matrix(form, shape, seed, size=inputs**-0.5) for seed, shape in enumerate(shapes)]
    coded = WeightStack.coded((PlainCodes.of(part, DEVICE) for part in parts), shapes, form, DEVICE).split(experts)
    assert coded.num_bytes == held_bytes(form, shapes)
    dense = np.concatenate([dequantize_scaled(part) for part in parts]).reshape(experts, outputs, inputs)
    return coded, WeightStack.dense(torch.from_numpy(cast(np.ndarray, dense)).to(DEVICE))
