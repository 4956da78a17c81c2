"""KV blocks of 8 bits: the codes of every number, calibrated scales, and how far attention is from float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.kernels.arrays import FloatArray  # noqa: E402
from octavo.kernels.attention_layer import AttentionLayer, KVScales  # noqa: E402
from octavo.kernels.cpu.device import CpuDevice  # noqa: E402
from octavo.kernels.device import Device, StepBatch  # noqa: E402
from octavo.kernels.kv_layout import LARGEST_CODE, KVDType, KVGroup, KVLayout, calibrated_code, kv_scales  # noqa: E402
from octavo.kernels.ops import Ops, Tensor  # noqa: E402
from octavo.kernels.reference.device import ReferenceDevice  # noqa: E402
from octavo.testing.made_parameters import parameter  # noqa: E402
from octavo.testing.op_harness import Harness, Pool  # noqa: E402

DEVICES: list[Callable[[], Device]] = [lambda: CpuDevice(1), ReferenceDevice]
DTYPES: list[KVDType] = ["fp8", "int8"]
HEADS, DIM = 2, 16


def layer(scales: KVScales | None = None, window: int | None = None) -> AttentionLayer:
    return AttentionLayer(0, 0, HEADS, HEADS, DIM, DIM**-0.5, window=window, scales=scales)


def harness(device: Device, rows: FloatArray, spec: AttentionLayer, dtype: KVDType) -> Harness:
    """rows: q, k and v of each token id."""
    table = parameter(rows)

    def function(ops: Ops) -> Tensor:
        return ops.paged_attention(ops.rotary_kv_write(ops.embedding(table, "input_ids"), spec), spec)

    pool = Pool(num_kv_heads=HEADS, head_dim=DIM, dtype=dtype, max_len=256)
    return Harness(device, function, HEADS * DIM, pool, spec.window)


def numbers(dtype: KVDType) -> FloatArray:
    """Codes, what lies around the middle between two, and what no code reaches, of both signs."""
    if dtype == "int8":
        codes = np.arange(128, dtype=np.float32)
    else:
        codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    middles = (codes[1:] + codes[:-1]) / 2
    around = np.concatenate([codes, middles, np.nextafter(middles, 0), np.nextafter(middles, 1e9)])
    positive = np.concatenate([around, [449, 463, 465, 1e6, 3e38, np.inf, 1e-30, 2e-3]]).astype(np.float32)
    return np.concatenate([positive, -positive])


@pytest.mark.parametrize("make", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_becomes_its_nearest_code(make: Callable[[], Device], dtype: KVDType) -> None:
    """A token that sees itself alone gets its own value: code times scale."""
    scale, given = np.float32(0.25), numbers(dtype)
    given = np.pad(given, (0, -len(given) % (HEADS * DIM))).reshape(-1, HEADS * DIM)
    scales = KVScales(np.ones(HEADS, np.float32), np.full(HEADS, scale, np.float32))
    rows = np.concatenate([np.zeros((len(given), 2 * HEADS * DIM), np.float32), given * scale], axis=1)
    out = harness(make(), rows, layer(scales, window=1), dtype).step([(0, range(len(rows)))])[0]
    limit = LARGEST_CODE[dtype]
    clipped = torch.from_numpy(given).clamp(-limit, limit)
    expected = clipped.round() if dtype == "int8" else clipped.to(torch.float8_e4m3fn).float()
    np.testing.assert_array_equal(out, expected.numpy() * scale)


def normal_rows(seed: int = 0, count: int = 90) -> FloatArray:
    """Heads of different sizes."""
    rows = np.random.default_rng(seed).standard_normal((count, 3 * HEADS * DIM), np.float32)
    rows[:, 2 * HEADS * DIM :] *= np.repeat(np.float32([0.02, 3.0]), DIM)
    return rows


def batch(num_tokens: int) -> StepBatch:
    table = np.arange(1, 17, dtype=np.int32)[None]
    loc, lens = np.array([0, num_tokens], np.int32), np.array([num_tokens], np.int32)
    tokens = np.arange(num_tokens, dtype=np.int32)
    return StepBatch(tokens, tokens, loc, lens, np.zeros(1, np.int32), (table,))


@pytest.mark.parametrize("make", DEVICES)
@pytest.mark.parametrize(("dtype", "bound"), [("fp8", 0.04), ("int8", 0.015)])
def test_calibrated_attention_is_near_that_of_float32(make: Callable[[], Device], dtype: KVDType, bound: float) -> None:
    """Each head by its own scale; the second has the numbers of other tokens than those that calibrated."""
    rows = normal_rows()
    step = [(0, range(80)), (1, range(60, 90))]
    exact = np.concatenate(harness(ReferenceDevice(), rows, layer(), "float32").step(step))
    coded = harness(make(), rows, layer(), dtype)
    coded.compiled.calibrate(batch(64))
    out = np.concatenate(coded.step(step))
    for head in range(HEADS):
        ours, theirs = (each.reshape(-1, HEADS, DIM)[:, head] for each in (out, exact))
        assert np.linalg.norm(ours - theirs) < bound * np.linalg.norm(theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_calibration_gives_the_largest_number_its_code(dtype: KVDType) -> None:
    """The scales that both backends find equal those that the numbers have, given as a checkpoint's."""
    rows = normal_rows(1)
    largest = np.abs(rows[:64].reshape(64, 3, HEADS, DIM)).max(axis=(0, 3)) / np.float32(calibrated_code(dtype))
    given = harness(CpuDevice(1), rows, layer(KVScales(largest[1], largest[2])), dtype)
    expected = given.step([(0, range(90))])[0]
    for make in DEVICES:
        found = harness(make(), rows, layer(), dtype)
        found.compiled.calibrate(batch(64))
        np.testing.assert_allclose(found.step([(0, range(90))])[0], expected, rtol=2e-5, atol=2e-6)


def test_a_head_of_zeros_calibrates_to_a_scale_of_one() -> None:
    rows = np.zeros((4, 3 * HEADS * DIM), np.float32)
    for make in DEVICES:
        zeros = harness(make(), rows, layer(), "int8")
        zeros.compiled.calibrate(batch(4))
        assert not zeros.step([(0, range(4))])[0].any()


def test_a_block_of_codes_takes_a_byte_an_element() -> None:
    layout = KVLayout(10, 16, (KVGroup(3, 2, 64),), "bfloat16")
    for dtype in DTYPES:
        assert 2 * KVLayout(10, 16, layout.groups, dtype).block_bytes == layout.block_bytes


def test_scales_are_the_callers_own() -> None:
    given = KVScales(np.full(HEADS, 2, np.float32), np.full(HEADS, 3, np.float32))
    keys, values = kv_scales(layer(given))
    keys[:] = values[:] = 7
    assert given.keys.tolist() == [2, 2]
    assert given.values.tolist() == [3, 3]
    assert [each.tolist() for each in kv_scales(layer())] == [[1, 1], [1, 1]]
