"""Where a number of an int4 matrix lies among the bytes that a lane reads, and what the kernel takes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.kernels.cuda.plain_codes import PlainCodes  # noqa: E402
from octavo.kernels.cuda_cpp.quantized_format import why_not  # noqa: E402
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight, pack_by_groups, pack_int4  # noqa: E402
from octavo.kernels.scaled import ScaledFormat, ScaledTensor  # noqa: E402


def test_each_nibble_is_where_its_lane_reads_it() -> None:
    q = torch.from_numpy(np.random.default_rng(0).integers(0, 16, (48, 192)).astype(np.uint8))
    words = pack_int4(q).numpy().view(np.uint32)  # [tile, piece, lane, 2 units x 2 outputs]
    for output, k in ((0, 0), (7, 63), (8, 64), (47, 191), (21, 100)):
        tile, row, piece, inside = output // 16, output % 16, k // 64, k % 64
        unit, lane, number = inside // 32, row % 8 * 4 + inside % 32 // 8, inside % 8
        nibble = number // 2 + number % 2 * 4
        word = int(words[tile, piece, lane, unit * 2 + row // 8])
        assert word >> 4 * nibble & 15 == q[output, k]


def test_scales_of_two_outputs_are_side_by_side() -> None:
    scales = torch.arange(32 * 3).view(32, 3)
    packed = pack_by_groups(scales)
    assert packed[1, 2, 5].tolist() == [scales[21, 2], scales[29, 2]]


def test_a_stack_holds_its_parts_and_pads_rows_of_blocks() -> None:
    form = ScaledFormat("F8_E4M3", (128, 128))
    parts = [
        ScaledTensor(form, (128, 640), np.full((128, 640), i, np.uint8), np.full((1, 5), i, np.float32)) for i in (1, 2)
    ]
    weight = QuantizedWeight.of([PlainCodes.of(part, torch.device("cpu")) for part in parts], form, torch.bfloat16)
    assert weight.data.view(torch.uint8)[:, 0].unique().tolist() == [1, 2]
    assert weight.scales.tolist() == [[1] * 5 + [0] * 3, [2] * 5 + [0] * 3]


@pytest.mark.parametrize(
    ("form", "shape", "reason"),
    [
        (ScaledFormat("U4", (1, 128), has_zeros=True), (32, 256), None),
        (ScaledFormat("U4", (1, 32)), (32, 256), "groups of 64, 128, 256, 512"),
        (ScaledFormat("NF4", (1, 64)), (32, 256), "NF4"),
        (ScaledFormat("I8", (1, 0)), (24, 256), "24 x 256"),
        (ScaledFormat("F8_E4M3", (64, 64)), (128, 256), "128x128"),
        (ScaledFormat("F8_E4M3", (0, 0)), (32, 192), "multiples of 16 x 128"),
    ],
)
def test_what_the_kernel_does_not_take_is_said(form: ScaledFormat, shape: tuple[int, int], reason: str | None) -> None:
    found = why_not(form, *shape)
    assert (found is None) if reason is None else (found is not None and reason in found)
