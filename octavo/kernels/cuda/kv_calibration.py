"""Sets the scales of an 8-bit KV cache on a GPU by the keys and values, or latents, of one step, in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.kv_layout import KVDType, calibrated_code
from octavo.kernels.triton.attention.latent_kv_write import LatentWeights
from octavo.kernels.triton.attention.memory import AttentionMemory
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform

Launch = Callable[[DeviceStep, torch.Tensor, torch.Tensor], None]


def with_calibration(
    launch: Launch, memory: AttentionMemory, layer: AttentionLayer, transform: HeadTransform
) -> Launch:
    """The launch that writes a layer's keys and values; before it, while `memory.calibrates`, their scales are set."""
    pools, dtype = memory.pools, memory.kv.dtype

    def calibrating(step: DeviceStep, qkv: torch.Tensor, q: torch.Tensor) -> None:
        if memory.calibrates:
            pools[layer].scales.copy_(scales_of(qkv, layer, transform, step.positions, dtype))
        launch(step, qkv, q)

    return calibrating


def scales_of(
    qkv: torch.Tensor, layer: AttentionLayer, transform: HeadTransform, positions: torch.Tensor, dtype: KVDType
) -> torch.Tensor:
    """[2 * K], of keys and then of values. qkv [T, (Q + 2K) * D] from the projection."""
    heads_TXD = qkv.float().unflatten(1, (-1, layer.head_dim))
    k_TKD, v_TKD = heads_TXD[:, layer.num_heads :].tensor_split(2, dim=1)
    if transform.has_norm:
        k_TKD = k_TKD * (k_TKD.square().mean(-1, keepdim=True) + transform.eps).rsqrt() * transform.k_norm
    if transform.rotary_dim:
        half = transform.rotary_dim // 2
        cos, sin = (table[positions.long()][:, None] for table in (transform.cos, transform.sin))
        a, b, rest = k_TKD.tensor_split([half, 2 * half], dim=-1)
        k_TKD = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
    return _scales(torch.cat([x.abs().amax(dim=(0, 2)) for x in (k_TKD, v_TKD)]), dtype)


def latent_scales_of(
    kv: torch.Tensor, layer: AttentionLayer, weights: LatentWeights, positions: torch.Tensor, dtype: KVDType
) -> torch.Tensor:
    """[2], of rotated keys and then of latents. kv [T, R + P] from the projection."""
    latent = layer.latent
    assert latent is not None, "the layer has latents"
    c_TR, k_TP = kv.float().tensor_split([latent.rank], dim=1)
    c_TR = c_TR * (c_TR.square().mean(-1, keepdim=True) + layer.norm_eps).rsqrt() * weights.norm
    a, b = (k_TP[:, 0::2], k_TP[:, 1::2]) if latent.interleaves else k_TP.chunk(2, dim=1)
    cos, sin = weights.cos[positions.long()], weights.sin[positions.long()]
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin])
    return _scales(torch.stack([turned.abs().max(), c_TR.abs().max()]), dtype)


def _scales(largest: torch.Tensor, dtype: KVDType) -> torch.Tensor:
    return torch.where(largest > 0, largest / calibrated_code(dtype), torch.ones_like(largest))
