"""Many rows times int4 in groups, in CUDA C++, against torch in float32."""

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
from octavo.kernels.cuda_cpp.quantized_format import LARGEST_WIDE_TILE  # isort: skip
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight  # isort: skip
from octavo.kernels.cuda_cpp.wide_int4 import SHAPES, Exchange, Shape, Split, Variant, wide_int4  # isort: skip
from octavo.kernels.reference.dequantize import convert, dequantize  # isort: skip
from octavo.kernels.reference.scaled import dequantize_scaled  # isort: skip
from octavo.kernels.scaled import ScaledFormat  # isort: skip
from octavo.kernels.tensor import from_array  # isort: skip
from tests.gpu.quantized_matrix import random_matrix  # isort: skip

if not ON_GPU or find_nvcc() is None or torch.cuda.get_device_capability()[0] != 9:
    pytest.skip("needs a Hopper GPU and nvcc", allow_module_level=True)

FORMS = {
    "zeros": ScaledFormat("U4", (1, 64), has_zeros=True),
    "short scales": ScaledFormat("U4", (1, 128)),
    "long scales": ScaledFormat("U4", (1, 512)),
}


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    gpu = find_gpu(0)
    assert gpu is not None
    kinds = [(name == "zeros", name == "short scales", shape.rows, shape.outputs) for name in FORMS for shape in SHAPES]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda kind: Variant(*kind).compile(gpu), kinds))


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
    gpu, (columns, depth), form = find_gpu(0), size, FORMS[kind]
    assert gpu is not None
    parts = [random_matrix(form, size, seed) for seed in (1, 2)]
    if kind == "short scales":
        parts = [replace(part, scales=dequantize(convert(from_array(part.scales), "BF16"))) for part in parts]
    weight = QuantizedWeight.of([PlainCodes.of(part, DEVICE) for part in parts], form, torch.bfloat16)
    assert weight.has_short_scales == (kind == "short scales")
    dense = np.concatenate([np.array(dequantize_scaled(part), np.float32).reshape(size) for part in parts])
    x = torch.randn(rows, depth + 64, device=DEVICE).bfloat16()[:, 64:]
    bias = torch.randn(2 * columns, device=DEVICE).bfloat16()
    product = x.float() @ torch.from_numpy(dense).to(DEVICE).T
    blocks = gpu.num_multiprocessors
    exchange = Exchange(
        torch.full((blocks * LARGEST_WIDE_TILE,), torch.nan, device=DEVICE),
        torch.zeros(1 + blocks, device=DEVICE, dtype=torch.int32),
    )
    for i, split in enumerate(Split.all_of(shape, rows, 2 * columns, depth, blocks)):
        monkeypatch.setattr(Split, "of", lambda *_, split=split: split)
        rows_there = rows if i % 2 else rows + 256  # what lies behind the rows are no numbers
        room = torch.full((rows_there * depth,), torch.nan, device=DEVICE, dtype=torch.bfloat16)
        first = None
        for _ in range(8):
            out = torch.full((rows, 2 * columns), torch.nan, device=DEVICE, dtype=torch.bfloat16)
            wide_int4(x, weight, None if i % 2 else bias, out, room, exchange, gpu=gpu)
            first = out if first is None else first
            assert torch.equal(out, first), f"{split}: blocks exchange sums in one order"
        assert relative_error(out, product if i % 2 else product + bias.float()) < 6e-3, split
