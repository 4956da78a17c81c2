"""Products with matrices that are codes with scales, in every format, against the numbers that they stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, relative_error

from octavo.errors import UnsupportedModelError  # isort: skip
from octavo.kernels.cuda.block_codes import of_blocks  # isort: skip
from octavo.kernels.cuda import coded_product  # isort: skip
from octavo.kernels.cuda.coded_product import CodedProduct  # isort: skip
from octavo.kernels.cuda.driver import GPU  # isort: skip
from octavo.kernels.cuda.plain_codes import PlainCodes  # isort: skip
from octavo.kernels.reference.dequantize import RECORDS, dequantize  # isort: skip
from octavo.kernels.reference.scaled import dequantize_scaled  # isort: skip
from octavo.kernels.scaled import ScaledFormat, ScaledTensor  # isort: skip
from octavo.kernels.tensor import BLOCK_DTYPES, BLOCK_FORMATS, DType, HostTensor  # isort: skip
from octavo.kernels.triton.coded import weight_stack  # isort: skip
from octavo.kernels.triton.coded.coded_format import form_of, held_bytes, why_not  # isort: skip
from octavo.kernels.triton.coded.coded_linear import MAX_ROWS, coded_linear, make_dense  # isort: skip
from octavo.kernels.triton.coded.weight_stack import WeightStack  # isort: skip
from octavo.testing import made_parameters  # isort: skip
from octavo.quantization.at_load import quantised  # isort: skip
from tests.gpu.quantized_matrix import random_matrix  # isort: skip

FORMATS = [
    *(ScaledFormat("F8_E4M3", block) for block in ((0, 0), (1, 0), (128, 128))),
    *(ScaledFormat("I8", (1, 0), has_zeros=True), ScaledFormat("I8", (1, 64), has_zeros=True)),
    *(ScaledFormat("U4", (1, 0)), ScaledFormat("U4", (1, 32)), ScaledFormat("U4", (1, 32), has_zeros=True)),
    *(ScaledFormat("U4", (1, 32), has_zeros=True, is_sorted=True), ScaledFormat("I8", (1, 64), is_sorted=True)),
    *(ScaledFormat("E2M1", (1, 32)), ScaledFormat("NF4", (1, 64))),
]
#: out, in: one tile; neither a multiple of a tile; longer than a turn
SHAPES = [(16, 64), (48, 320)] if not ON_GPU else [(16, 64), (208, 320), (4096, 4096), (6144, 11008)]
ROWS = [1, 5] if not ON_GPU else [1, 2, 8, 33, MAX_ROWS]
COMPUTED = [torch.float32] if not ON_GPU else [torch.bfloat16, torch.float16]


def matrix(form: ScaledFormat, shape: tuple[int, int]) -> tuple[WeightStack, torch.Tensor]:
    """And the numbers that it stands for."""
    tensor = random_matrix(form, shape, size=shape[1] ** -0.5)
    weight = WeightStack.coded([PlainCodes.of(tensor, DEVICE)], [shape], form, DEVICE)
    assert weight.num_bytes == held_bytes(form, [shape])
    return weight, torch.from_numpy(np.array(dequantize_scaled(tensor)).reshape(shape)).to(DEVICE)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.label)
def test_it_equals_torch(form: ScaledFormat) -> None:
    for shape in SHAPES:
        if why_not(form, shape[1]):
            continue
        weight, dense = matrix(form, shape)
        made = torch.full_like(dense, torch.nan)
        make_dense(weight, made)
        assert torch.equal(made, dense)
        for dtype in COMPUTED:
            for rows in ROWS:
                x, bias = torch.randn(rows, shape[1], device=DEVICE).to(dtype), torch.randn(shape[0], device=DEVICE)
                out = torch.full((rows, shape[0]), torch.nan, device=DEVICE, dtype=dtype)
                coded_linear(x, weight, out, bias=bias.to(dtype))
                assert relative_error(out, F.linear(x.float(), dense, bias)) < 2 * TOLERANCE[dtype]


def test_fp8_by_its_bits_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs that convert no fp8."""
    monkeypatch.setattr(weight_stack, "_converts_fp8", lambda device: False)
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128) % 127 + np.array([[0], [128]], np.uint8)
    tensor = ScaledTensor(ScaledFormat("F8_E4M3", (1, 0)), (2, 128), codes, np.ones((2, 1), np.float32))
    weight = WeightStack.coded([PlainCodes.of(tensor, DEVICE)], [(2, 128)], tensor.format, DEVICE)
    out = torch.empty(2, 128, device=DEVICE)
    make_dense(weight, out)
    assert np.array_equal(out.cpu().numpy(), dequantize_scaled(tensor))


def test_the_smallest_power_of_two_is_kept() -> None:
    form = ScaledFormat("E2M1", (1, 32))
    scales = np.ldexp(np.float32(1), np.array([[-127, -126, 0, 127]]))
    tensor = ScaledTensor(form, (1, 128), np.full((1, 64), 0x22, np.uint8), scales)
    weight = WeightStack.coded([PlainCodes.of(tensor, DEVICE)], [(1, 128)], form, DEVICE)
    out = torch.empty(1, 128, device=DEVICE)
    make_dense(weight, out)
    assert np.array_equal(out.cpu().numpy(), dequantize_scaled(tensor))


@pytest.mark.parametrize(
    "form",
    [
        *(ScaledFormat("E2M1", (1, 64)), ScaledFormat("NF4", (1, 64)), ScaledFormat("U4", (1, 64))),
        *(ScaledFormat("U4", (1, 64), has_zeros=True), ScaledFormat("I8", (1, 32), has_zeros=True)),
    ],
    ids=lambda form: form.label,
)
def test_the_device_quantises_as_the_host_does(form: ScaledFormat) -> None:
    numbers = np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32)
    numbers[3], numbers[4] = 0, np.abs(numbers[4])
    host = PlainCodes.of(quantised(numbers, form), DEVICE)
    own = PlainCodes.quantise(torch.from_numpy(numbers).to(DEVICE), form)
    assert torch.equal(own.scales, host.scales)
    assert torch.equal(own.codes, host.codes)
    assert (own.zeros is None) == (host.zeros is None)
    assert own.zeros is None or torch.equal(own.zeros, host.zeros.float())


@pytest.mark.parametrize("dtype", sorted(BLOCK_DTYPES))
def test_ggufs_blocks_keep_their_numbers(dtype: DType) -> None:
    length, num_bytes = BLOCK_FORMATS[dtype]
    shape = (16, max(2 * length, 96))
    rng = np.random.default_rng(0)
    tensor = HostTensor(dtype, shape, rng.integers(0, 256, 16 * shape[1] // length * num_bytes, dtype=np.uint8))
    blocks = tensor.data.view(RECORDS[dtype])
    for scale in set(blocks.dtype.names or ()) & {"d", "m"}:  # no infinities
        blocks[scale] = rng.standard_normal(blocks[scale].shape) * 0.01
    if dtype == "MXFP4":
        blocks["e"] = rng.integers(110, 126, blocks["e"].shape)
    part = made_parameters.parameter(tensor)
    form = form_of(part)
    assert form is not None
    assert why_not(form, shape[1]) is None
    weight = WeightStack.coded([of_blocks(tensor, DEVICE)], [shape], form, DEVICE)
    assert weight.num_bytes == held_bytes(form, [shape])
    made, dense = torch.empty(shape, device=DEVICE), torch.from_numpy(np.array(dequantize(tensor))).to(DEVICE)
    make_dense(weight, made)
    assert torch.equal(made, dense) if not ON_GPU else relative_error(made, dense) < 1e-6  # it may fuse a subtraction
    for rows in ROWS:
        x = torch.randn(rows, shape[1], device=DEVICE).to(COMPUTED[0])
        out = torch.empty(rows, 16, device=DEVICE, dtype=x.dtype)
        coded_linear(x, weight, out)
        assert relative_error(out, F.linear(x.float(), dense)) < 2 * TOLERANCE[x.dtype]


@pytest.mark.parametrize(
    ("form", "most"),
    [
        (ScaledFormat("U4", (1, 32)), MAX_ROWS),
        (ScaledFormat("U4", (1, 32), is_sorted=True), MAX_ROWS),
        (ScaledFormat("NF4", (1, 64)), 1),
    ],
    ids=lambda value: value.label if isinstance(value, ScaledFormat) else None,
)
def test_a_product_of_stacked_parts(form: ScaledFormat, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few rows and with many, with a bias, and before a norm. Each part may sort its inputs in its own order. Of
    codes that are looked up only one row meets the codes."""
    depth, dtype, is_sorted = 64, COMPUTED[0], form.is_sorted
    parts = [random_matrix(form, (rows, depth), seed, size=depth**-0.5) for seed, rows in enumerate((16, 32))]
    groups = [parts] if not is_sorted else [[part] for part in parts]
    stacks = tuple(
        WeightStack.coded((PlainCodes.of(each, DEVICE) for each in group), [each.shape for each in group], form, DEVICE)
        for group in groups
    )
    dense = torch.from_numpy(np.concatenate([dequantize_scaled(part) for part in parts])).to(DEVICE)
    bias, scratch = torch.randn(48, device=DEVICE).to(dtype), torch.empty(48 * depth + 5, device=DEVICE, dtype=dtype)
    none = torch.empty(0, device=DEVICE)
    product = CodedProduct(stacks, bias, scratch, none, none, GPU("a GPU", (8, 0), 1 << 34, 1))
    met: list[int] = []

    def record(x: torch.Tensor, *given: Any, **how: Any) -> None:
        met.append(len(x))
        coded_linear(x, *given, **how)

    monkeypatch.setattr(coded_product, "coded_linear", record)
    for rows in (1, 3, MAX_ROWS + 1):
        x, out = torch.randn(rows, depth, device=DEVICE).to(dtype), torch.empty(rows, 48, device=DEVICE, dtype=dtype)
        product.run(x, out)
        expected = F.linear(x.float(), dense, bias.float())
        assert relative_error(out, expected) < 2 * TOLERANCE[dtype]
        total, norm = torch.randn(rows, 48, device=DEVICE).to(dtype), torch.rand(48, device=DEVICE)
        expected += total.float()
        product.run_add_rms_norm(x, total, norm, 1e-6, out, None)
        assert relative_error(total, expected) < 2 * TOLERANCE[dtype]
        assert relative_error(out, F.rms_norm(expected, [48], norm, 1e-6)) < 3 * TOLERANCE[dtype]
    assert set(met) == {rows for rows in (1, 3) if rows <= most}


def test_groups_of_unequal_sizes_are_an_error() -> None:
    tensor = random_matrix(ScaledFormat("U4", (1, 32), is_sorted=True), (16, 64))
    assert tensor.groups is not None
    groups = tensor.groups.copy()
    groups[:] = 0
    with pytest.raises(UnsupportedModelError, match="unequal sizes"):
        PlainCodes.of(replace(tensor, groups=groups), DEVICE)
