"""Norm latents, rotate keys and queries, and write latents and keys to the cache: a part of the op `latent_kv_write`.

kv [T, R + P]        ──latent──> norm ────> pool[slot]
                     ──key─────> rotate ──> pool[slot], after the latent
q [T, Q * (N + P)]   ──each head's last P──> rotate ──> out [T, Q * (R + P)], after the R that a product writes
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

_HEADS = 16  # of a program


@dataclass(frozen=True, slots=True, eq=False)
class LatentWeights:
    """Of one layer, on the device. keys, values: views of one matrix, from a head's query to the latents' side
    [Q, N, R], and from there to its value [Q, R, V]."""

    keys: torch.Tensor
    values: torch.Tensor
    norm: torch.Tensor  # [R] float32
    cos: torch.Tensor  # [max_len, P / 2] float32
    sin: torch.Tensor

    @classmethod
    def of(cls, layer: AttentionLayer, weights: DeviceWeights) -> LatentWeights:
        latent, rotary, norm = layer.latent, layer.rotary, layer.k_norm
        assert latent is not None, "the layer has latents"
        assert rotary is not None, "their keys rotate"
        assert norm is not None, "a latent is normed"
        up_QXR = weights.stacked(latent.up).view(latent.num_heads, -1, latent.rank)
        keys, values = up_QXR.tensor_split([latent.key_dim], dim=1)
        return cls(keys, values.transpose(1, 2), weights.vector(norm), *weights.rotary(rotary))


def latent_kv_write(
    q: torch.Tensor,
    kv: torch.Tensor,
    out: torch.Tensor,
    layer: AttentionLayer,
    pool: LayerPool,
    weights: LatentWeights,
    *,
    slots: torch.Tensor,
    positions: torch.Tensor,
    chained: bool = False,
) -> None:
    """slots: the step's plan's; a token with slot -1 does not change the cache."""
    latent, rotary_dim = layer.latent, 2 * weights.cos.shape[1]
    assert latent is not None, "the layer has latents"
    heads = min(_HEADS, triton.next_power_of_2(layer.num_heads))
    _latent_kv_write_kernel[(len(positions), 1 + triton.cdiv(layer.num_heads, heads))](
        q, kv, out, pool.data, slots, positions, weights.norm, weights.cos, weights.sin, layer.norm_eps,
        pool.scales, q.stride(0), kv.stride(0), out.stride(0), pool.block_stride,
        Q_HEADS=layer.num_heads, HEADS_TILE=heads, KEY_DIM=latent.key_dim, RANK=latent.rank, ROTARY=rotary_dim,
        RANK_PAD=triton.next_power_of_2(latent.rank), ROTARY_PAD=triton.next_power_of_2(rotary_dim),
        INTERLEAVES=latent.interleaves, BLOCK_SIZE=pool.block_size,
        HAS_CODES=pool.codes["HAS_CODES"], CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


@triton.jit
def _latent_kv_write_kernel(
    q, kv, out, pool, slots, positions, norm, cos, sin, eps, scales, q_stride, kv_stride, out_stride, block_stride,
    Q_HEADS: tl.constexpr, HEADS_TILE: tl.constexpr, KEY_DIM: tl.constexpr, RANK: tl.constexpr, ROTARY: tl.constexpr,
    RANK_PAD: tl.constexpr, ROTARY_PAD: tl.constexpr, INTERLEAVES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HAS_CODES: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One program per token and HEADS_TILE heads, and one for its latent."""
    wait_for_previous(CHAINED)
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    p = tl.arange(0, ROTARY_PAD)[None, :]
    if tl.program_id(1) == 0:
        slot = tl.load(slots + token).to(tl.int64)
        row = kv + token * kv_stride
        cell = pool + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * (RANK + ROTARY)
        r = tl.arange(0, RANK_PAD)
        c = tl.load(row + r, mask=r < RANK, other=0.0).to(tl.float32)
        c = c * tl.rsqrt(tl.sum(c * c) / RANK + eps) * tl.load(norm + r, mask=r < RANK, other=0.0)
        scale = tl.load(scales + 1) if HAS_CODES else 1.0
        tl.store(cell + r, stored(c, scale, pool.dtype.element_ty), mask=(r < RANK) & (slot >= 0))
        k = _rotated(row + RANK, cos, sin, position, p, p < ROTARY, ROTARY, INTERLEAVES)
        scale = tl.load(scales) if HAS_CODES else 1.0
        tl.store(cell + RANK + p, stored(k, scale, pool.dtype.element_ty), mask=(p < ROTARY) & (slot >= 0))
    else:
        head = (tl.program_id(1) - 1) * HEADS_TILE + tl.arange(0, HEADS_TILE)[:, None]
        mask = (head < Q_HEADS) & (p < ROTARY)
        query = q + token * q_stride + head * (KEY_DIM + ROTARY) + KEY_DIM
        turned = _rotated(query, cos, sin, position, p, mask, ROTARY, INTERLEAVES)
        to = out + token * out_stride + head * (RANK + ROTARY) + RANK + p
        tl.store(to, turned.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _rotated(row, cos, sin, position, p, mask, ROTARY: tl.constexpr, INTERLEAVES: tl.constexpr):
    """The elements at row + p, each turned with its partner."""
    half: tl.constexpr = ROTARY // 2
    if INTERLEAVES:
        partner = p ^ 1
        angle = p // 2
        is_first = p % 2 == 0
    else:
        partner = tl.where(p < half, p + half, p - half)
        angle = p % half
        is_first = p < half
    at = position.to(tl.int64) * half + angle
    c = tl.load(cos + at, mask=p < ROTARY, other=1.0)
    s = tl.load(sin + at, mask=p < ROTARY, other=0.0)
    x = tl.load(row + p, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(row + partner, mask=mask, other=0.0).to(tl.float32)
    return x * c + tl.where(is_first, -y, y) * s
