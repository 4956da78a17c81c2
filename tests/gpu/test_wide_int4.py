"""Many rows times int4 in groups, in CUDA C++, against torch in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, relative_error

from octavo.kernels.cuda.driver import find_gpu  # isort: skip
from octavo.kernels.cuda.plain_codes import PlainCodes  # isort: skip
from octavo.kernels.cuda_cpp.compile import find_nvcc  # isort: skip
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight  # isort: skip
from octavo.kernels.cuda_cpp.wide_int4 import takes_wide, wide_int4  # isort: skip
from octavo.kernels.reference.scaled import dequantize_scaled  # isort: skip
from octavo.kernels.scaled import ScaledFormat  # isort: skip
from tests.gpu.quantized_matrix import random_matrix  # isort: skip

if not ON_GPU or find_nvcc() is None or torch.cuda.get_device_capability()[0] != 9:
    pytest.skip("needs a Hopper GPU and nvcc", allow_module_level=True)


@pytest.mark.parametrize(
    "form",
    [ScaledFormat("U4", (1, 64), has_zeros=True), ScaledFormat("U4", (1, 128)), ScaledFormat("U4", (1, 512))],
    ids=lambda form: form.label,
)
@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        (512, (2048, 1024)),
        (131, (304, 512)),
        (17, (4096, 512)),
        (1000, (9216, 512)),
        (200, (8464, 512)),
        (384, (9216, 512)),
    ],
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_equals_torch(form: ScaledFormat, rows: int, shape: tuple[int, int], has_bias: bool) -> None:
    """Two matrices, one below the other; rows that are not contiguous; tiles of both sizes."""
    gpu, (columns, depth) = find_gpu(0), shape
    assert gpu is not None
    parts = [random_matrix(form, shape, seed) for seed in (1, 2)]
    weight = QuantizedWeight.of([PlainCodes.of(part, DEVICE) for part in parts], form, torch.bfloat16)
    dense = np.concatenate([np.array(dequantize_scaled(part), np.float32).reshape(shape) for part in parts])
    x = torch.randn(rows, depth + 64, device=DEVICE).bfloat16()[:, 64:]
    bias = torch.randn(2 * columns, device=DEVICE).bfloat16() if has_bias else None
    out = torch.full((rows, 2 * columns), torch.nan, device=DEVICE, dtype=torch.bfloat16)
    assert takes_wide(weight, x[:256], gpu)
    wide_int4(x, weight, bias, out, torch.empty(x.numel(), device=DEVICE, dtype=torch.bfloat16), gpu=gpu)
    expected = x.float() @ torch.from_numpy(dense).to(DEVICE).T + (0 if bias is None else bias.float())
    assert relative_error(out, expected) < 6e-3
