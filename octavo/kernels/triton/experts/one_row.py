"""A mixture of one row: each chosen expert's weights are read once, by programs that have a few of its outputs.

A program's weights fit its registers, so all of them are on the way at once, as in `skinny_linear`. The second product
adds up the experts itself, and the residual.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.mixture import Gate
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.coded.numbers import row_product
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.experts.gate import gated
from octavo.kernels.triton.experts.room import Room

_TILE = 8192  # weights of a program, of one matrix


def one_row_gate_up(
    x: torch.Tensor, weight: WeightStack, bias: torch.Tensor | None, room: Room, gate: Gate, *,
    num_chosen: int, first_expert: int, chained: bool,
) -> None:  # fmt: skip
    """room.gated[place] for each chosen expert, from x [1, H] and weight [experts, 2F, H]."""
    num_own, outputs, depth = weight.shape
    pad, columns = triton.next_power_of_2(depth), outputs // 2
    block = max(1, _TILE // pad)
    data, scales, zeros = weight.tensors
    _gate_up_kernel[(triton.cdiv(columns, block), num_chosen)](
        x, data, scales, zeros, data if bias is None else bias, data if weight.order is None else weight.order,
        room.ids, room.gated, first_expert, num_own, gate.alpha, gate.limit,
        K=depth, BK=pad, N=columns, BN=block, GATE=gate.kind, HAS_BIAS=bias is not None,
        ORDERS=weight.num_orders, **weight.constants,
        CHAINED=chained, launch_pdl=chained, num_warps=8 if pad > _TILE else 4,
    )  # fmt: skip


def one_row_down(
    weight: WeightStack, bias: torch.Tensor | None, residual: torch.Tensor | None, out: torch.Tensor, room: Room, *,
    num_chosen: int, first_expert: int, chained: bool,
) -> None:  # fmt: skip
    """out [1, H] = the weighted sum of room.gated [K, F] times weight [experts, H, F] (+ residual)."""
    num_own, columns, depth = weight.shape
    pad = triton.next_power_of_2(depth)
    block = max(1, _TILE // 2 // pad)
    data, scales, zeros = weight.tensors
    _down_kernel[(triton.cdiv(columns, block),)](
        data, scales, zeros, data if bias is None else bias, data if weight.order is None else weight.order,
        out if residual is None else residual, room.gated, room.ids, room.weights, out, first_expert, num_own,
        TOP_K=num_chosen, K=depth, BK=pad, N=columns, BN=block, HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None, ORDERS=weight.num_orders, **weight.constants, CHAINED=chained,
        launch_pdl=chained, num_warps=8 if pad > _TILE else 4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first_expert", "num_own"])
def _gate_up_kernel(
    x_ptr, weight_ptr, scales_ptr, zeros_ptr, bias_ptr, order_ptr, ids_ptr, gated_ptr, first_expert, num_own, alpha,
    limit, K: tl.constexpr, BK: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr, ORDERS: tl.constexpr, CODE: tl.constexpr, GROUP: tl.constexpr, ROW_BLOCK: tl.constexpr,
    ZEROS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    n_load, k = tl.minimum(n, N - 1), tl.arange(0, BK)
    wait_for_previous(CHAINED)
    expert = tl.load(ids_ptr + place) - first_expert
    if (expert < 0) | (expert >= num_own):
        return
    output = expert.to(tl.int64) * 2 * N + n_load
    if CODE == "":
        cell = weight_ptr + output[:, None] * K + k[None, :]
        w = tl.load(cell, mask=(k < K)[None, :], other=0.0)
        w_up = tl.load(cell + N * K, mask=(k < K)[None, :], other=0.0)
        x = tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
        y, up = tl.sum(w.to(tl.float32) * x, 1), tl.sum(w_up.to(tl.float32) * x, 1)
    else:
        order = order_ptr + expert * (ORDERS * K)
        y = row_product(
            weight_ptr, scales_ptr, zeros_ptr, output, x_ptr, order, True, K, BK, CODE, GROUP, ROW_BLOCK, ZEROS,
            ORDERS > 0,
        )  # fmt: skip
        up = row_product(
            weight_ptr, scales_ptr, zeros_ptr, output + N, x_ptr, order + (K if ORDERS == 2 else 0), True, K, BK,
            CODE, GROUP, ROW_BLOCK, ZEROS, ORDERS > 0,
        )  # fmt: skip
    if HAS_BIAS:
        bias = bias_ptr + expert * 2 * N + n_load
        y += tl.load(bias).to(tl.float32)
        up += tl.load(bias + N).to(tl.float32)
    tl.store(gated_ptr + place * N + n, gated(y, up, alpha, limit, GATE).to(gated_ptr.dtype.element_ty), mask=n < N)


@triton.jit(do_not_specialize=["first_expert", "num_own"])
def _down_kernel(
    weight_ptr, scales_ptr, zeros_ptr, bias_ptr, order_ptr, residual_ptr, gated_ptr, ids_ptr, weights_ptr, out_ptr,
    first_expert, num_own, TOP_K: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, N: tl.constexpr, BN: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ORDERS: tl.constexpr, CODE: tl.constexpr, GROUP: tl.constexpr,
    ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    n_load, k = tl.minimum(n, N - 1), tl.arange(0, BK)
    total = tl.zeros([BN], tl.float32)
    wait_for_previous(CHAINED)
    for place in tl.static_range(TOP_K):
        expert = tl.load(ids_ptr + place) - first_expert
        is_here = (expert >= 0) & (expert < num_own)
        row = tl.where(is_here, expert, 0).to(tl.int64) * N + n_load
        if CODE == "":
            inside = is_here & (k < K)
            w = tl.load(weight_ptr + row[:, None] * K + k[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
            y = tl.sum(w * tl.load(gated_ptr + place * K + k, mask=inside, other=0.0).to(tl.float32)[None, :], 1)
        else:
            y = row_product(
                weight_ptr, scales_ptr, zeros_ptr, row, gated_ptr + place * K,
                order_ptr + tl.where(is_here, expert, 0) * (ORDERS * K), is_here, K, BK, CODE, GROUP, ROW_BLOCK,
                ZEROS, ORDERS > 0,
            )  # fmt: skip
        if HAS_BIAS:
            y += tl.load(bias_ptr + row, mask=is_here & (n < N), other=0.0).to(tl.float32)
        total += tl.where(is_here, tl.load(weights_ptr + place), 0.0) * y
    if HAS_RESIDUAL:
        total += tl.load(residual_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out_ptr + n, total.to(out_ptr.dtype.element_ty), mask=n < N)
