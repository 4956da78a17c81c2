"""Element-wise ops, gated activations and embeddings: read once, compute in float32, write once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from octavo.kernels.ops import Activation
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.dealt import dealt

_TILE = 1024


def elementwise(
    op: str, *tensors: torch.Tensor, numbers: Sequence[float] = (), word: str = "", chained: bool = False
) -> None:
    """The op of that name. tensors: its one or two inputs and its result, which may be an input, all contiguous and of
    one shape. numbers, word: its parameters, at most two numbers and one word."""
    assert all(tensor.is_contiguous() for tensor in tensors), "element-wise kernels walk flat memory"
    x, y, out = tensors[0], tensors[-2], tensors[-1]
    first, second = (*numbers, 0.0, 0.0)[:2]
    _elementwise_kernel[(triton.cdiv(x.numel(), _TILE),)](
        x, y, out, first, second, x.numel(),
        OP=op, WORD=word, NUM_INPUTS=len(tensors) - 1,
        TILE=_TILE, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


def gated_activation(
    gate_up: torch.Tensor, kind: Activation, out: torch.Tensor, *, deals: bool = False, chained: bool = False
) -> None:
    """[T, 2F] -> out [T, F]: act(gate) * up; gate is the first half of the columns. deals: see triton/dealt.py."""
    width = out.shape[1]
    _gated_kernel[(len(out), triton.cdiv(width, _TILE))](
        gate_up, out, width, gate_up.stride(0), out.stride(0),
        KIND=kind, DEALS=deals, TILE=_TILE, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


def gate_rows(x: torch.Tensor, gate: torch.Tensor, out: torch.Tensor, *, chained: bool = False) -> None:
    """out [T, width] = x * sigmoid(gate [T, 1]). `out` may be x."""
    width = x.shape[1]
    _gate_rows_kernel[(len(x), triton.cdiv(width, _TILE))](
        x, gate, out, width, x.stride(0), gate.stride(0), out.stride(0),
        TILE=_TILE, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


def embedding(
    table: torch.Tensor,
    index: torch.Tensor,
    out: torch.Tensor,
    *,
    offset: int = 0,
    scale: float = 1.0,
    is_part: bool = False,
    chained: bool = False,
) -> None:
    """out [T, width] = table[index + offset] * scale. The dtypes of table and `out` may differ. An index of -1 reads as
    0: it is a failed draw, found after the next step was launched, and that step's result for it is dropped. is_part:
    an index without a row in the table gives zeros."""
    width = table.shape[1]
    _embedding_kernel[(len(index), triton.cdiv(width, _TILE))](
        table, index, out, offset, scale, width, len(table), table.stride(0), out.stride(0),
        IS_PART=is_part, TILE=_TILE, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


@triton.jit
def tanh(x):
    """Uses exp of a negative number only, so nothing overflows; small arguments keep their digits."""
    magnitude = tl.abs(x)
    e = tl.exp(-2 * magnitude)
    large = (1 - e) / (1 + e)
    small = magnitude * (1 - magnitude * magnitude * (0.3333333333333333 - 0.13333333333333333 * magnitude * magnitude))
    t = tl.where(magnitude < 0.06, small, large)
    return tl.where(x < 0, -t, t)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """The activation named KIND, on float32."""
    if KIND == "silu":
        return x * tl.sigmoid(x)
    elif KIND == "gelu":
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    else:
        tl.static_assert(KIND == "relu")
        return tl.maximum(x, 0.0)


@triton.jit
def _result(x, y, first, second, OP: tl.constexpr, WORD: tl.constexpr):
    """The op named OP, on float32; a new op gets a case here."""
    if OP == "add":
        return x + y
    elif OP == "softcap":
        return first * tanh(x / first)
    elif OP == "scale":
        return x * first
    else:
        tl.static_assert(OP == "activation")
        return activate(x, WORD)


@triton.jit
def _elementwise_kernel(
    x_ptr, y_ptr, out_ptr, first, second, size,
    OP: tl.constexpr, WORD: tl.constexpr, NUM_INPUTS: tl.constexpr, TILE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_previous(CHAINED)
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = at < size
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    y = x
    if NUM_INPUTS == 2:
        y = tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
    result = _result(x, y, first, second, OP, WORD)
    tl.store(out_ptr + at, result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gated_kernel(
    gate_up, out, width, in_stride, out_stride,
    KIND: tl.constexpr, DEALS: tl.constexpr, TILE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_previous(CHAINED, EARLY=DEALS)  # the product that comes next reads only weights before it waits
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = col < width
    gate = tl.load(gate_up + row * in_stride + col, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * in_stride + width + col, mask=mask, other=0.0).to(tl.float32)
    y = (activate(gate, KIND) * up).to(out.dtype.element_ty)
    if DEALS:
        y = dealt(y, TILE)
    tl.store(out + row * out_stride + col, y, mask=mask)


@triton.jit
def _gate_rows_kernel(
    x_ptr, gate_ptr, out_ptr, width, x_stride, gate_stride, out_stride, TILE: tl.constexpr, CHAINED: tl.constexpr
):
    wait_for_previous(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = col < width
    factor = tl.sigmoid(tl.load(gate_ptr + row * gate_stride).to(tl.float32))
    x = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * out_stride + col, (x * factor).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _embedding_kernel(
    table, index, out, offset, scale, width, num_rows, table_stride, out_stride,
    IS_PART: tl.constexpr, TILE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_previous(CHAINED)
    token = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * TILE + tl.arange(0, TILE)
    row = (tl.maximum(tl.load(index + token), 0) + offset).to(tl.int64)
    mask = col < width
    if IS_PART:
        mask = mask & (row >= 0) & (row < num_rows)
    x = tl.load(table + row * table_stride + col, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + token * out_stride + col, (x * scale).to(out.dtype.element_ty), mask=col < width)
