"""y_h = x_h W_h for each head: the products of latent attention with each head's own matrix.

program: a head, COLUMNS of its outputs, ROWS tokens        sums in float32, in the same order for any step
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.chain import wait_for_previous

FEW_ROWS, ROWS = 16, 64
DEPTH = 64  # inputs at a time


def head_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    *,
    x_step: int,
    out_step: int,
    is_fixed: bool = False,
    chained: bool = False,
) -> None:
    """x [T, Q * x_step], of whose heads the first `inputs` count; out [T, Q * out_step], of which the first `outputs`
    are written. weight: [Q, inputs, outputs], any view. is_fixed: the same tiles for any number of tokens, as matrix
    units may round those of few rows in another way."""
    heads, inputs, outputs = weight.shape
    is_few = len(x) <= FEW_ROWS and not is_fixed
    rows, columns = (FEW_ROWS, 32) if is_few else (ROWS, 64)
    _head_linear_kernel[(heads, triton.cdiv(outputs, columns), triton.cdiv(len(x), rows))](
        x, weight, out, len(x), x.stride(0), out.stride(0),
        X_STEP=x_step, OUT_STEP=out_step, W_HEAD=weight.stride(0), W_IN=weight.stride(1), W_OUT=weight.stride(2),
        INPUTS=inputs, OUTPUTS=outputs, ROWS=rows, COLUMNS=columns, DEPTH=DEPTH,
        CHAINED=chained, launch_pdl=chained, num_warps=4, num_stages=3,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens"])
def _head_linear_kernel(
    x_ptr, weight, out_ptr, num_tokens, x_stride, out_stride,
    X_STEP: tl.constexpr, OUT_STEP: tl.constexpr, W_HEAD: tl.constexpr, W_IN: tl.constexpr, W_OUT: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    token = (tl.program_id(2) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    depth = tl.arange(0, DEPTH)
    is_token, is_column = token < num_tokens, column < OUTPUTS
    wait_for_previous(CHAINED)
    x_row = x_ptr + token[:, None] * x_stride + head * X_STEP
    w_column = weight + head.to(tl.int64) * W_HEAD + column[None, :] * W_OUT
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, INPUTS, DEPTH):
        k = start + depth
        is_input = k < INPUTS
        x = tl.load(x_row + k[None, :], mask=is_token[:, None] & is_input[None, :], other=0.0)
        w = tl.load(w_column + k[:, None] * W_IN, mask=is_input[:, None] & is_column[None, :], other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    to = out_ptr + token[:, None] * out_stride + head * OUT_STEP + column[None, :]
    tl.store(to, total.to(out_ptr.dtype.element_ty), mask=is_token[:, None] & is_column[None, :])
