"""Many rows times int4, int8 and fp8, in CUDA C++, against torch in float32."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, relative_error

from octavo.kernels.cuda.driver import find_gpu  # isort: skip
from octavo.kernels.cuda.plain_codes import PlainCodes  # isort: skip
from octavo.kernels.cuda_cpp.compile import find_nvcc  # isort: skip
from octavo.kernels.cuda_cpp.quantized_format import LARGEST_WIDE_TILE, LAYOUTS, scales_of  # isort: skip
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight  # isort: skip
from octavo.kernels.cuda_cpp.wide_codes import SHAPES, Exchange, Kind, Shape, Split, Variant, wide_codes  # isort: skip
from octavo.kernels.reference.dequantize import convert, dequantize  # isort: skip
from octavo.kernels.reference.scaled import dequantize_scaled  # isort: skip
from octavo.kernels.scaled import ScaledFormat  # isort: skip
from octavo.kernels.tensor import from_array  # isort: skip
from tests.gpu.quantized_matrix import random_matrix  # isort: skip

if not ON_GPU or find_nvcc() is None or torch.cuda.get_device_capability()[0] != 9:
    pytest.skip("needs a Hopper GPU and nvcc", allow_module_level=True)

BF16, FP16 = torch.bfloat16, torch.float16
TOLERANCE = {BF16: 6e-3, FP16: 1e-3}
FORMS = {
    "int4, zeros": (ScaledFormat("U4", (1, 64), has_zeros=True), BF16, False),
    "int4, zeros, short scales": (ScaledFormat("U4", (1, 128), has_zeros=True), BF16, True),
    "int4, short scales": (ScaledFormat("U4", (1, 128)), BF16, True),
    "int4, long scales": (ScaledFormat("U4", (1, 512)), BF16, False),
    "int4, outputs": (ScaledFormat("U4", (1, 0)), BF16, False),
    "int4, float16, zeros": (ScaledFormat("U4", (1, 64), has_zeros=True), FP16, False),
    "int4, float16, short scales": (ScaledFormat("U4", (1, 128)), FP16, True),
    "int8, outputs": (ScaledFormat("I8", (1, 0)), BF16, False),
    "int8, short scales": (ScaledFormat("I8", (1, 128)), BF16, True),
    "int8, float16, short scales": (ScaledFormat("I8", (1, 64)), FP16, True),
    "int8, float16, long scales": (ScaledFormat("I8", (1, 256)), FP16, False),
    "fp8, short scales": (ScaledFormat("F8_E4M3", (128, 128)), BF16, True),
    "fp8, long scales": (ScaledFormat("F8_E4M3", (128, 128)), BF16, False),
}


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    gpu = find_gpu(0)
    assert gpu is not None
    kinds = [
        Kind(LAYOUTS[form.code], dtype, scales_of(form), form.has_zeros, is_short)
        for form, dtype, is_short in FORMS.values()
    ]
    with ThreadPoolExecutor() as pool:
        variants = [Variant(kind, shape.rows, shape.outputs) for kind in kinds for shape in SHAPES]
        list(pool.map(lambda variant: variant.compile(gpu), variants))


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.rows}x{shape.outputs}")
@pytest.mark.parametrize(
    ("rows", "size"),
    [(512, (2048, 1024)), (131, (304, 512)), (17, (4096, 512)), (1000, (9216, 512)), (200, (8464, 512))],
)
def test_it_equals_torch(
    kind: str, shape: Shape, rows: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two matrices, one below the other; rows that are not contiguous; all splits, many times."""
    gpu, (columns, depth), (form, dtype, is_short) = find_gpu(0), size, FORMS[kind]
    assert gpu is not None
    if form.block[0] > 1:
        columns = columns // form.block[0] * form.block[0]
        size = columns, depth
    parts = [random_matrix(form, size, seed, size=1.0) for seed in (1, 2)]
    if is_short:
        short = "BF16" if dtype == BF16 else "F16"
        parts = [replace(part, scales=dequantize(convert(from_array(part.scales), short))) for part in parts]
    weight = QuantizedWeight.of([PlainCodes.of(part, DEVICE) for part in parts], form, dtype)
    assert weight.has_short_scales == is_short
    dense = np.concatenate([np.array(dequantize_scaled(part), np.float32).reshape(size) for part in parts])
    x = torch.randn(rows, depth + 64, device=DEVICE).to(dtype)[:, 64:]
    bias = torch.randn(2 * columns, device=DEVICE).to(dtype)
    product = x.float() @ torch.from_numpy(dense).to(DEVICE).T
    blocks = gpu.num_multiprocessors
    exchange = Exchange(
        torch.full((blocks * LARGEST_WIDE_TILE,), torch.nan, device=DEVICE),
        torch.zeros(1 + blocks, device=DEVICE, dtype=torch.int32),
    )
    for i, split in enumerate(Split.all_of(shape, rows, 2 * columns, depth, blocks)):
        monkeypatch.setattr(Split, "of", lambda *_, split=split: split)
        rows_there = rows if i % 2 else rows + 256  # what lies behind the rows are no numbers
        room = torch.full((rows_there * depth,), torch.nan, device=DEVICE, dtype=dtype)
        first = None
        for _ in range(8):
            out = torch.full((rows, 2 * columns), torch.nan, device=DEVICE, dtype=dtype)
            wide_codes(x, weight, None if i % 2 else bias, out, room, exchange, gpu=gpu)
            first = out if first is None else first
            assert torch.equal(out, first), f"{split}: blocks exchange sums in one order"
        assert relative_error(out, product if i % 2 else product + bias.float()) < TOLERANCE[dtype], split
