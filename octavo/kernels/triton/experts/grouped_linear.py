"""Products of many rows with many matrices, each row with those of the experts that it chose.

An expert's rows are a list of pairs (see `routing.py`). A program has one tile: up to BM pairs of one expert, times BN
of its outputs. Lists are as long as it happens, so a program finds its expert by counting tiles:

    pairs of each expert     5   0  40   3
    tiles of 16 pairs        1   0   3   1     tile 2 is the second of the third expert

There are as many programs as any choice could need; those without a tile end at once. So a launch's shape depends only
on the number of rows, and a CUDA graph can hold it. Few pairs an expert are read at the speed of its weights; many fill
the matrix units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.mixture import Gate
from octavo.kernels.scaled import NIBBLES, Code
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.coded.numbers import multiply_codes
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.experts.gate import gated
from octavo.kernels.triton.experts.room import Room
from octavo.kernels.triton.linear.skinny_linear import shared_memory


@dataclass(frozen=True, slots=True)
class Tile:
    """pairs x columns of the result, in turns of `depth` inputs. A gated product multiplies twice as many columns."""

    pairs: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


#: for any number of pairs, where the order of sums must not depend on it
FIXED = Tile(32, 64, 64, 4, 3)


def choose_tile(
    num_pairs: int, num_experts: int, *, is_gated: bool, code: Code | None = None, is_fp8: bool = False
) -> Tile:
    """By the average length of an expert's list. Smaller numbers are multiplied in longer turns. is_fp8: the rows are,
    too."""
    average = num_pairs / num_experts
    if code is not None and not is_fp8:
        return _choose_for_codes(average, is_gated=is_gated, depth=256 if code in NIBBLES else 128)
    twice = 2 if is_fp8 else 1
    if average <= 8:
        return Tile(16, 32 if is_gated else 64, 128 * twice, 4, 4)
    if average <= 48:
        return Tile(32 if average <= 24 else 64, 64 if is_gated else 128, 64 * twice, 4, 4)
    return Tile(128, 128 if is_gated else 256, 64 * twice, 8, 3)


def _choose_for_codes(average: float, *, is_gated: bool, depth: int) -> Tile:
    """Codes become numbers in registers, so tiles are smaller."""
    if average <= 24:
        return Tile(16 if average <= 8 else 32, 64, depth, 4, 4)
    if average <= 48:
        return Tile(64, 64, 128, 4, 4)
    return Tile(128, 64 if is_gated else 128, 128, 8, 3)


def grouped_linear(
    x: torch.Tensor, weight: WeightStack, bias: torch.Tensor | None, out: torch.Tensor, room: Room,
    *, num_pairs: int, rows_of: int, row_scales: torch.Tensor | None = None, gate: Gate | None = None,
    tile: Tile | None = None, chained: bool,
) -> None:  # fmt: skip
    """out[pair] = x[pair // rows_of] times its expert's matrix, plus bias. With `gate`, act(gate) * up; gate columns
    are first. row_scales: of the rows of x, which are fp8 codes then, and the weights too, with scales of outputs."""
    num_experts, outputs, depth = weight.shape
    columns = outputs if gate is None else outputs // 2
    assert out.shape == (num_pairs, columns), f"a result of {columns} columns for each of {num_pairs} pairs"
    assert row_scales is None or (weight.code == "F8_E4M3" and weight.scales_outputs), "fp8 times fp8"
    is_fp8 = row_scales is not None
    tile = tile or choose_tile(num_pairs, num_experts, is_gated=gate is not None, code=weight.code, is_fp8=is_fp8)
    num_tiles = min(num_pairs, num_experts + num_pairs // tile.pairs)
    data, scales, zeros = weight.tensors
    _grouped_kernel[(num_tiles * triton.cdiv(columns, tile.columns),)](
        x, data.view(x.dtype) if is_fp8 else data, scales, zeros,
        x if row_scales is None else row_scales, data if bias is None else bias,
        data if weight.order is None else weight.order, out, room.counts, room.order, room.max_rows,
        x.stride(0), out.stride(0), 0.0 if gate is None else gate.alpha, 0.0 if gate is None else gate.limit,
        NUM_EXPERTS=num_experts, EPAD=triton.next_power_of_2(num_experts), ROWS_OF=rows_of, K=depth, N=columns,
        BM=tile.pairs, BN=tile.columns, BK=tile.depth, GATE="" if gate is None else gate.kind,
        HAS_BIAS=bias is not None, HAS_ROW_SCALES=is_fp8, ORDERS=weight.num_orders, **weight.constants,
        CHAINED=chained, launch_pdl=chained, num_warps=tile.num_warps,
        num_stages=max(1, min(tile.num_stages, shared_memory(x.device) // _turn_bytes(tile, x, weight, gate))),
    )  # fmt: skip


def _turn_bytes(tile: Tile, x: torch.Tensor, weight: WeightStack, gate: Gate | None) -> int:
    """What a turn loads into shared memory."""
    row_bytes = tile.depth * weight.data.nbytes // math.prod(weight.shape)
    return tile.pairs * tile.depth * x.element_size() + tile.columns * (1 if gate is None else 2) * row_bytes


@triton.jit(do_not_specialize=["max_rows"])
def _grouped_kernel(
    x_ptr, weight_ptr, scales_ptr, zeros_ptr, row_scales_ptr, bias_ptr, sorted_ptr, out_ptr, counts_ptr, order_ptr,
    max_rows, x_stride, out_stride, alpha, limit,
    NUM_EXPERTS: tl.constexpr, EPAD: tl.constexpr, ROWS_OF: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GATE: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_ROW_SCALES: tl.constexpr, ORDERS: tl.constexpr, CODE: tl.constexpr, GROUP: tl.constexpr,
    ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    tile = tl.program_id(0) // BLOCKS
    n = tl.program_id(0) % BLOCKS * BN + tl.arange(0, BN)
    wait_for_previous(CHAINED)
    e = tl.arange(0, EPAD)
    counts = tl.load(counts_ptr + e, mask=e < NUM_EXPERTS, other=0)
    tiles = (counts + BM - 1) // BM
    is_before = tl.cumsum(tiles, 0) <= tile
    expert = tl.sum(is_before.to(tl.int32), 0)
    if expert >= NUM_EXPERTS:
        return
    m = (tile - tl.sum(tl.where(is_before, tiles, 0), 0)) * BM + tl.arange(0, BM)
    inside = m < tl.sum(tl.where(e == expert, counts, 0), 0)
    pair = tl.load(order_ptr + expert.to(tl.int64) * max_rows + m, mask=inside, other=0)
    HALVES: tl.constexpr = 1 if GATE == "" else 2
    n_load = tl.minimum(n, N - 1)
    output = expert.to(tl.int64) * (HALVES * N) + n_load
    rows = x_ptr + (pair // ROWS_OF).to(tl.int64) * x_stride
    if CODE == "" or HAS_ROW_SCALES:
        matrix = weight_ptr + expert.to(tl.int64) * (HALVES * N * K)
        y, up = _multiply(rows, matrix, n_load, K, N, BM, BN, BK, GATE)
    else:
        y, up = multiply_codes(
            rows, weight_ptr, scales_ptr, zeros_ptr, sorted_ptr + expert * (ORDERS * K), output, K, BM, BN, BK,
            0 if GATE == "" else N, CODE, GROUP, ROW_BLOCK, ZEROS, ORDERS > 0, K if ORDERS == 2 else 0,
        )  # fmt: skip
    if CODE != "" and GROUP == 0:
        y *= tl.load(scales_ptr + output)[None, :]
        if GATE != "":
            up *= tl.load(scales_ptr + output + N)[None, :]
    if HAS_ROW_SCALES:
        of_row = tl.load(row_scales_ptr + pair // ROWS_OF)[:, None]
        y, up = y * of_row, up * of_row
    if HAS_BIAS:
        bias = bias_ptr + expert * (HALVES * N) + n_load
        y += tl.load(bias).to(tl.float32)[None, :]
        if GATE != "":
            up += tl.load(bias + N).to(tl.float32)[None, :]
    if GATE != "":
        y = gated(y, up, alpha, limit, GATE)
    at = out_ptr + pair.to(tl.int64)[:, None] * out_stride + n[None, :]
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (n < N)[None, :])


@triton.jit
def _multiply(
    rows, matrix, n, K: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    """[BM, BN] products, and those of the up columns if there are any."""
    k = tl.arange(0, BK)
    cells = rows[:, None] + k[None, :]
    y = tl.zeros([BM, BN], tl.float32)
    up = tl.zeros([BM, BN], tl.float32)
    cell = matrix + n[None, :] * K + k[:, None]
    for start in range(0, K, BK):
        if K % BK == 0:
            x, w = tl.load(cells + start), tl.load(cell + start)
        else:
            left = start + k < K
            x = tl.load(cells + start, mask=left[None, :], other=0.0)
            w = tl.load(cell + start, mask=left[:, None], other=0.0)
        y = tl.dot(x, w, y, input_precision="ieee")
        if GATE != "":
            if K % BK == 0:
                w = tl.load(cell + N * K + start)
            else:
                w = tl.load(cell + N * K + start, mask=left[:, None], other=0.0)
            up = tl.dot(x, w, up, input_precision="ieee")
    return y, up
