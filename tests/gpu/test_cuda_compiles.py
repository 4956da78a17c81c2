"""The kernels in CUDA C++ compile for the GPUs that they are written for. Needs nvcc, and no GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda.driver import GPU  # noqa: E402
from octavo.kernels.cuda_cpp import (  # noqa: E402
    dense_linear,
    dequantise,
    experts,
    fp4_experts,
    fp8_linear,
    grouped_codes,
    grouped_linear,
    int4_linear,
    one_row_format,
    one_sequence,
    wide_codes,
)
from octavo.kernels.cuda_cpp.all_reduce import compile_all_reduce  # noqa: E402
from octavo.kernels.cuda_cpp.attention_plan import compile_plan, plan_costs  # noqa: E402
from octavo.kernels.cuda_cpp.compile import find_nvcc  # noqa: E402
from octavo.kernels.cuda_cpp.decode_attention import Kind  # noqa: E402
from octavo.kernels.cuda_cpp.expert_format import Ring  # noqa: E402
from octavo.kernels.cuda_cpp.expert_routing import RouterVariant  # noqa: E402
from octavo.kernels.cuda_cpp.quantized_format import Layout, Scales  # noqa: E402
from octavo.kernels.cuda_cpp.quantized_linear import Variant  # noqa: E402
from octavo.kernels.cuda_cpp.shape import Occupancy, Shape  # noqa: E402
from octavo.kernels.kv_layout import KVDType  # noqa: E402

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="there is no nvcc")

AMPERE, ADA, HOPPER, BLACKWELL, SMALL_BLACKWELL = (
    GPU("a GPU", capability, 1 << 34, 1) for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))
)


@pytest.mark.parametrize(("gpu", "num_seqs"), product((AMPERE, HOPPER), (64, 1024)))
def test_plan(gpu: GPU, num_seqs: int) -> None:
    assert compile_plan(num_seqs, gpu, plan_costs(gpu, has_codes=False))[0].startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("gpu", "layout", "kind"),
    [(AMPERE, "fp8", "outputs"), (AMPERE, "int8", "groups"), (HOPPER, "fp8", "blocks"), (HOPPER, "int8", "groups")],
)
def test_quantized_linear(gpu: GPU, layout: Layout, kind: Scales) -> None:
    dtype, is_gated = (torch.float16, True) if gpu is AMPERE else (torch.bfloat16, kind == "blocks")
    assert Variant(layout, kind, dtype, is_gated, 2, 16384).compile(gpu).startswith(b"\x7fELF")


def test_many_rows() -> None:
    kind = wide_codes.Kind("int8", torch.float16, "groups", has_zeros=False, has_short_scales=False)
    variant = wide_codes.Variant(kind, rows=192, outputs=128)
    assert variant.compile(HOPPER).startswith(b"\x7fELF")


@pytest.mark.parametrize(("gpu", "layout", "kind"), [(AMPERE, "int4", "groups"), (HOPPER, "fp8", "blocks")])
def test_dequantise(gpu: GPU, layout: Layout, kind: Scales) -> None:
    variant = dequantise.Variant(layout, kind, layout == "int4", torch.float16)
    assert variant.compile(gpu).startswith(b"\x7fELF")


def test_dense_linear() -> None:
    assert dense_linear.Variant(torch.float16, True, warps=16, entries=6).compile(HOPPER).startswith(b"\x7fELF")
    assert dense_linear.Variant(torch.bfloat16, False, warps=12, entries=8).compile(HOPPER).startswith(b"\x7fELF")


def test_fp8_linear() -> None:
    variant = fp8_linear.Variant(True, True, rows=2, warpgroups=4, entries=4, batch=4)
    assert variant.compile(HOPPER).startswith(b"\x7fELF")


@pytest.mark.parametrize("gpu", [AMPERE, HOPPER])
def test_int4_linear(gpu: GPU) -> None:
    dtype, has_groups = (torch.float16, True) if gpu is AMPERE else (torch.bfloat16, False)
    variant = int4_linear.Variant(dtype, has_groups, has_groups, True, 2, piece=128, span=64, entries=3)
    assert variant.compile(gpu).startswith(b"\x7fELF")


def test_experts() -> None:
    product = experts.Variant(torch.bfloat16, "E2M1", 32, False, False, 8, 32, True, Ring(4, 7, 2))
    wide = grouped_linear.Variant(torch.bfloat16, True, "clamped", has_bias=True)
    codes = grouped_codes.CodesVariant(torch.float16, "I8", False, True, None, grouped_codes.TILES[0])
    ring = fp4_experts.WarpRing(1, 2, 6, 2, 1, 12)
    one = fp4_experts.Fp4Variant(torch.bfloat16, False, 32, False, True, 4, 1, 1, "clamped", ring)
    tiling = one_row_format.Tiling(2, 10, 8, (8, 2), (6, 1), 1, 1, 2)
    alone = one_row_format.OneRowVariant(torch.bfloat16, True, True, 128, False, 8, tiling, "silu", True)
    kinds = RouterVariant(torch.float16, "F8_E4M3", 2), product, wide, codes, one, alone
    with ThreadPoolExecutor() as pool:
        assert all(made.startswith(b"\x7fELF") for made in pool.map(lambda kind: kind.compile(HOPPER), kinds))


@pytest.mark.parametrize(
    ("gpu", "head_dim", "fused"),
    [
        *((AMPERE, 128, True), (AMPERE, 64, False), (ADA, 128, False), (HOPPER, 64, True), (HOPPER, 96, False)),
        *((HOPPER, 256, True), (BLACKWELL, 128, True), (SMALL_BLACKWELL, 64, True)),
    ],
)
def test_decode_attention(gpu: GPU, head_dim: int, fused: bool) -> None:
    dtype = torch.float16 if fused else torch.bfloat16
    shape = Shape(num_kv_heads=2, group=4, max_queries=1 if fused else 16)
    kind = Kind(head_dim, shape, dtype, 16, not fused, fused, fused, head_dim if fused else 0, fused)
    assert kind.compile(gpu).startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("gpu", "codes", "dtype", "has_sinks"),
    [(AMPERE, "fp8", "bfloat16", False), (HOPPER, "int8", "float16", True), (HOPPER, None, "bfloat16", True)],
)
def test_decode_attention_over_codes_and_with_sinks(
    gpu: GPU, codes: KVDType | None, dtype: str, has_sinks: bool
) -> None:
    kind = Kind(64, Shape(2, 4), getattr(torch, dtype), 16, False, False, True, 64, True, codes, has_sinks)
    assert kind.compile(gpu).startswith(b"\x7fELF")


@pytest.mark.parametrize(("dtype", "head_dim", "window"), [("bfloat16", 128, False), ("float16", 64, True)])
def test_attention_of_one_sequence(dtype: str, head_dim: int, window: bool) -> None:
    kind = Kind(
        head_dim, Shape(2, 5), getattr(torch, dtype), 32, window, not window, True, 32, not window, None, window
    )
    assert one_sequence.takes(kind, HOPPER)
    assert one_sequence.compile_one(kind, HOPPER).startswith(b"\x7fELF")


def test_rings_fit_into_shared_memory() -> None:
    wide, narrow = Shape(8, 4), Shape(8, 1)
    assert Occupancy.of(wide, 128, (9, 0)) == Occupancy(blocks=2, entries=5)
    assert Occupancy.of(narrow, 64, (9, 0)) == Occupancy(blocks=2, entries=11)
    assert Occupancy.of(wide, 256, (10, 0)) == Occupancy(blocks=1, entries=5)
    assert Occupancy.of(wide, 128, (8, 0)) == Occupancy(blocks=2, entries=3)
    assert Occupancy.of(wide, 128, (8, 9)) == Occupancy(blocks=1, entries=4)
    assert Occupancy.of(wide, 256, (12, 0)) is None
    assert Occupancy.of(wide, 128, (9, 0), has_codes=True) == Occupancy(blocks=3, entries=4)
    assert Occupancy.of(wide, 128, (10, 0), has_codes=True) == Occupancy(blocks=3, entries=6)
    assert Occupancy.of(wide, 256, (9, 0), has_codes=True) == Occupancy(blocks=2, entries=4)


@pytest.mark.parametrize(
    ("gpu", "ranks", "dtype", "per_thread"),
    [(AMPERE, 2, "float32", 1), (HOPPER, 2, "bfloat16", 1), (HOPPER, 4, "float16", 2)],
)
def test_all_reduce(gpu: GPU, ranks: int, dtype: str, per_thread: int) -> None:
    assert compile_all_reduce(ranks, getattr(torch, dtype), gpu.capability, per_thread).startswith(b"\x7fELF")
