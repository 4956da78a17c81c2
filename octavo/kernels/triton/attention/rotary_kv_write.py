"""Norm and rotate query and key heads, and write keys and values to the cache: the op `rotary_kv_write`.

For steps with chunks; a step of decodes alone does the same inside `decode_attention.py`.

    qkv [T, (Q + 2K) * D] ──q heads──> norm, rotate ──> q_out [T, Q * D]
                          ──k heads──> norm, rotate ──> pool[slot].K
                          ──v heads─────────────────> pool[slot].V
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.triton.attention.codes import stored
from octavo.kernels.triton.attention.memory import LayerPool
from octavo.kernels.triton.chain import wait_for_previous


@dataclass(frozen=True, slots=True, eq=False)
class HeadTransform:
    """The changes to a q or k head between projection and attention. Tensors are float32 on the device. row_scales,
    column_scales: what the projection lacks, for backends that multiply it (`AttentionBackend.scales_projections`)."""

    q_norm: torch.Tensor
    k_norm: torch.Tensor
    cos: torch.Tensor  # [max_len, rotary_dim / 2]
    sin: torch.Tensor
    rotary_dim: int  # 0: no rotation
    has_norm: bool
    eps: float
    row_scales: torch.Tensor | None = None  # of each row of q, and
    column_scales: torch.Tensor | None = None  # of its columns [(Q + 2K) * D]

    @classmethod
    def of(cls, layer: AttentionLayer, weights: DeviceWeights) -> HeadTransform:
        """A layer's norms and angles; layers with the same rotary table share its upload."""
        assert (layer.q_norm is None) == (layer.k_norm is None), "query and key heads are normed together or not at all"
        nothing = torch.zeros(1, device=weights.device)
        cos, sin = (nothing, nothing) if layer.rotary is None else weights.rotary(layer.rotary)
        return cls(
            q_norm=nothing if layer.q_norm is None else weights.vector(layer.q_norm),
            k_norm=nothing if layer.k_norm is None else weights.vector(layer.k_norm),
            cos=cos,
            sin=sin,
            rotary_dim=0 if layer.rotary is None else layer.rotary.rotary_dim,
            has_norm=layer.q_norm is not None,
            eps=layer.norm_eps,
        )

    @classmethod
    def none(cls, placeholder: torch.Tensor) -> HeadTransform:
        """No change. placeholder: for the kernel's pointers, which it will not follow."""
        return cls(placeholder, placeholder, placeholder, placeholder, 0, False, 0.0)


def rotary_kv_write(
    qkv: torch.Tensor,
    q_out: torch.Tensor,
    layer: AttentionLayer,
    pool: LayerPool,
    transform: HeadTransform,
    *,
    slots: torch.Tensor,
    positions: torch.Tensor,
    chained: bool = False,
) -> None:
    """qkv [T, (Q + 2K) * D] -> q_out [T, Q * D] and the cache. slots: the step's plan's; a token with slot -1 does not
    change the cache."""
    heads = layer.num_heads + 2 * layer.num_kv_heads
    heads_tile, width = min(8, triton.next_power_of_2(heads)), triton.next_power_of_2(layer.head_dim)
    _rotary_kv_write_kernel[(len(positions), triton.cdiv(heads, heads_tile))](
        qkv, q_out, pool.data, slots, positions,
        transform.q_norm, transform.k_norm, transform.cos, transform.sin, transform.eps,
        pool.scales, qkv.stride(0), q_out.stride(0), pool.block_stride, pool.value_offset,
        Q_HEADS=layer.num_heads, KV_HEADS=layer.num_kv_heads, HEADS_TILE=heads_tile,
        D=layer.head_dim, D_PAD=width,
        ROTARY=transform.rotary_dim, HAS_NORM=transform.has_norm, BLOCK_SIZE=pool.block_size,
        **pool.codes, CHAINED=chained, launch_pdl=chained, num_warps=max(1, width // 128),
    )  # fmt: skip


@triton.jit
def norm_and_rotate(
    row, head_offset, norm, cos, sin, position, eps, d, mask,
    D: tl.constexpr, ROTARY: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Heads at row + head_offset + d, d [1, D_PAD], as float32. `norm` has one weight per element of d.

    Element i of the first half turns with element i + ROTARY / 2. Both are loaded, the second time from L1, which costs
    less than a shuffle of registers.
    """
    x = tl.load(row + head_offset + d, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        rstd = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x = x * rstd * tl.load(norm + d, mask=d < D, other=0.0)
    if ROTARY:
        half: tl.constexpr = ROTARY // 2
        partner = tl.where(d < half, d + half, d - half)
        turns = d < ROTARY
        y = tl.load(row + head_offset + partner, mask=mask & turns, other=0.0).to(tl.float32)
        if HAS_NORM:
            y = y * rstd * tl.load(norm + partner, mask=turns, other=0.0)
        angle = position.to(tl.int64) * half + d % half
        c = tl.load(cos + angle, mask=turns, other=1.0)
        s = tl.load(sin + angle, mask=turns, other=0.0)
        x = x * c + tl.where(d < half, -y, y) * s
    return x


@triton.jit
def _rotary_kv_write_kernel(
    qkv, q_out, pool, slots, positions, q_norm, k_norm, cos, sin, eps,
    scales, qkv_stride, out_stride, block_stride, value_offset,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEADS_TILE: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    ROTARY: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK_SIZE: tl.constexpr, HAS_CODES: tl.constexpr,
    IS_FLOAT: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One program per token and HEADS_TILE heads; a tile with heads of two kinds computes both, masked."""
    wait_for_previous(CHAINED)
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * HEADS_TILE
    head = first + tl.arange(0, HEADS_TILE)[:, None]
    d = tl.arange(0, D_PAD)[None, :]
    in_dim = d < D
    row = qkv + token * qkv_stride
    position = tl.load(positions + token)
    slot = tl.load(slots + token).to(tl.int64)
    in_cache = in_dim & (slot >= 0)
    cell = pool + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * D

    if first < Q_HEADS:
        mask = (head < Q_HEADS) & in_dim
        q = norm_and_rotate(row, head * D, q_norm, cos, sin, position, eps, d, mask, D, ROTARY, HAS_NORM)
        tl.store(q_out + token * out_stride + head * D + d, q.to(q_out.dtype.element_ty), mask=mask)
    if (first + HEADS_TILE > Q_HEADS) & (first < Q_HEADS + KV_HEADS):
        mask = (head >= Q_HEADS) & (head < Q_HEADS + KV_HEADS) & in_cache
        k = norm_and_rotate(row, head * D, k_norm, cos, sin, position, eps, d, mask, D, ROTARY, HAS_NORM)
        scale = tl.load(scales + head - Q_HEADS, mask=mask, other=1.0) if HAS_CODES else 1.0
        tl.store(cell + (head - Q_HEADS) * (BLOCK_SIZE * D) + d, stored(k, scale, pool.dtype.element_ty), mask=mask)
    if first + HEADS_TILE > Q_HEADS + KV_HEADS:
        mask = (head >= Q_HEADS + KV_HEADS) & (head < Q_HEADS + 2 * KV_HEADS) & in_cache
        v = tl.load(row + head * D + d, mask=mask, other=0.0)
        to = cell + value_offset + (head - Q_HEADS - KV_HEADS) * (BLOCK_SIZE * D) + d
        scale = tl.load(scales + head - Q_HEADS, mask=mask, other=1.0) if HAS_CODES else 1.0
        tl.store(to, stored(v, scale, pool.dtype.element_ty), mask=mask)
