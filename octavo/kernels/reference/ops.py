"""Ops in torch: each call computes at once, in float32.

Rows of a step never mix, except through the cache. Their last bits may still depend on the company they run in,
because torch sums a product in another order for another number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812

from octavo.kernels.ops import Activation, AttentionLayer, FloatArray, Index, LinearWeight
from octavo.kernels.reference import attention
from octavo.kernels.reference.weights import WeightCache
from octavo.kernels.tensor import HostTensor

ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class ReferenceOps:
    """Implements `octavo.kernels.ops.Ops`. `step` is the step being computed; the owner sets it."""

    def __init__(self, cache: attention.KVCache) -> None:
        self.step: attention.StepIndex
        self._cache = cache
        self._weights = WeightCache()

    def embedding(self, table: HostTensor, index: Index, *, offset: int = 0, scale: float = 1.0) -> torch.Tensor:
        ids = self.step.input_ids if index == "input_ids" else self.step.positions
        return self._weights.tensor(table)[ids + offset] * scale

    def linear(self, x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
        y = torch.cat([x @ self._weights.tensor(part).T for part in weight.parts], dim=-1)
        return y if weight.bias is None else y + self._weights.array(weight.bias)

    def rms_norm(self, x: torch.Tensor, weight: FloatArray, eps: float) -> torch.Tensor:
        return rms_norm(x, self._weights.array(weight), eps)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: FloatArray, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    def layer_norm(self, x: torch.Tensor, weight: FloatArray, bias: FloatArray | None, eps: float) -> torch.Tensor:
        bias_H = None if bias is None else self._weights.array(bias)
        return F.layer_norm(x, x.shape[-1:], self._weights.array(weight), bias_H, eps)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def activation(self, x: torch.Tensor, kind: Activation) -> torch.Tensor:
        return ACTIVATIONS[kind](x)

    def gated_activation(self, gate_up: torch.Tensor, kind: Activation) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return ACTIVATIONS[kind](gate) * up

    def rotary_kv_write(self, qkv: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        heads_TXD = qkv.reshape(len(qkv), -1, layer.head_dim)
        q, k, v = heads_TXD.tensor_split([layer.num_heads, layer.num_heads + layer.num_kv_heads], dim=1)
        if layer.q_norm is not None:
            q = rms_norm(q, self._weights.array(layer.q_norm), layer.norm_eps)
        if layer.k_norm is not None:
            k = rms_norm(k, self._weights.array(layer.k_norm), layer.norm_eps)
        if layer.rotary is not None:
            cos = self._weights.array(layer.rotary.cos)[self.step.positions]
            sin = self._weights.array(layer.rotary.sin)[self.step.positions]
            q, k = attention.rotate(q, cos, sin), attention.rotate(k, cos, sin)
        self._cache.write(self.step, layer, k, v)
        return q.flatten(-2)

    def paged_attention(self, q: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        return attention.paged_attention(q, layer, self._cache, self.step)

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        return torch.tanh(x / cap) * cap


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
