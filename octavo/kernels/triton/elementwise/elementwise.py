"""Activations, gated activations, softcap and add: read once, compute in float32, write once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.ops import Activation
from octavo.kernels.triton.chain import wait_for_previous

_TILE = 1024


def activation(x: torch.Tensor, kind: Activation, out: torch.Tensor, *, chained: bool = False) -> None:
    """out = act(x), any contiguous shape. `out` may be x."""
    _elementwise(x, x, out, kind, 0.0, chained)


def softcap(x: torch.Tensor, cap: float, out: torch.Tensor, *, chained: bool = False) -> None:
    """out = cap * tanh(x / cap), any contiguous shape. `out` may be x."""
    _elementwise(x, x, out, "softcap", cap, chained)


def add(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor, *, chained: bool = False) -> None:
    """out = x + y, any contiguous shape. `out` may be x or y."""
    _elementwise(x, y, out, "add", 0.0, chained)


def gated_activation(gate_up: torch.Tensor, kind: Activation, out: torch.Tensor, *, chained: bool = False) -> None:
    """[T, 2F] -> out [T, F]: act(gate) * up, gate being the first half of the columns."""
    width = out.shape[1]
    _gated_kernel[(len(out), triton.cdiv(width, _TILE))](
        gate_up, out, width, gate_up.stride(0), out.stride(0),
        KIND=kind, TILE=_TILE, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


def _elementwise(
    x: torch.Tensor, y: torch.Tensor, out: torch.Tensor, kind: str, constant: float, chained: bool
) -> None:
    assert all(t.is_contiguous() for t in (x, y, out)), "element-wise kernels walk flat memory"
    _elementwise_kernel[(triton.cdiv(x.numel(), _TILE),)](
        x, y, out, constant, x.numel(), KIND=kind, TILE=_TILE, CHAINED=chained, launch_pdl=chained, num_warps=4
    )


@triton.jit
def tanh(x):
    """By exp of a negative number, so that nothing overflows; small arguments keep their digits."""
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
def _elementwise_kernel(
    x_ptr, y_ptr, out_ptr, constant, size, KIND: tl.constexpr, TILE: tl.constexpr, CHAINED: tl.constexpr
):
    wait_for_previous(CHAINED)
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = at < size
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if KIND == "add":
        y = x + tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
    elif KIND == "softcap":
        y = constant * tanh(x / constant)
    else:
        y = activate(x, KIND)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gated_kernel(
    gate_up, out, width, in_stride, out_stride, KIND: tl.constexpr, TILE: tl.constexpr, CHAINED: tl.constexpr
):
    wait_for_previous(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = col < width
    gate = tl.load(gate_up + row * in_stride + col, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * in_stride + width + col, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + col, (activate(gate, KIND) * up).to(out.dtype.element_ty), mask=mask)
