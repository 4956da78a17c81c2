"""How a program launches latent attention's work around attention: heads' own products, and the cache's write."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.kv_calibration import latent_scales_of
from octavo.kernels.cuda.shared import Shared
from octavo.kernels.triton.attention.latent_kv_write import LatentWeights, latent_kv_write
from octavo.kernels.triton.linear.head_linear import head_linear

if TYPE_CHECKING:
    from octavo.kernels.cuda.step import DeviceStep

Launch = Callable[..., None]


def latent_write_launch(layer: AttentionLayer, shared: Shared) -> Launch:
    """Of the op `latent_kv_write`. While `memory.calibrates`, the layer's scales are set before it."""
    weights, memory = LatentWeights.of(layer, shared.weights), shared.memory
    chained, is_fixed = shared.gpu.chains, shared.is_fixed
    slots, pools, width = memory.plan_of(layer).slots, memory.pools, layer.head_dim
    query = weights.keys.shape[1] + width - layer.value_dim

    def launch(step: DeviceStep, q: torch.Tensor, kv: torch.Tensor, out: torch.Tensor) -> None:
        pool, positions = pools[layer], step.positions
        if memory.calibrates:
            pool.scales.copy_(latent_scales_of(kv, layer, weights, positions, memory.kv.dtype))
        head_linear(q, weights.keys, out, x_step=query, out_step=width, is_fixed=is_fixed, chained=chained)
        latent_kv_write(q, kv, out, layer, pool, weights, slots=slots, positions=positions, chained=chained)

    return launch


def latent_values_launch(layer: AttentionLayer, shared: Shared) -> Launch:
    values, chained, is_fixed = LatentWeights.of(layer, shared.weights).values, shared.gpu.chains, shared.is_fixed
    _, rank, value_dim = values.shape
    return lambda step, x, out: head_linear(
        x, values, out, x_step=rank, out_step=value_dim, is_fixed=is_fixed, chained=chained
    )
