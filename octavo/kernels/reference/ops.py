"""Ops in torch: each call computes at once, in float32.

Rows of a step never mix, except through the cache. Their last bits may still depend on the other rows, because torch
sums a product in another order when the number of rows changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from octavo.distributed.collectives import Collectives
from octavo.kernels.adapters import AdaptedModule
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.latent import Latent
from octavo.kernels.mixture import Gate, Mixture
from octavo.kernels.op import Op
from octavo.kernels.ops import Activation, Index, Ops, Outside
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.program.recorder import See
from octavo.kernels.reference import attention
from octavo.kernels.reference.adapters import ReferenceAdapters
from octavo.kernels.reference.mixture import ACTIVATIONS, choose, gated
from octavo.kernels.reference.weights import ReferenceWeights

#: ops that need only tensors and numbers
PLAIN: dict[str, Callable[..., torch.Tensor]] = {
    "add": lambda x, y: x + y,
    "activation": lambda x, kind: ACTIVATIONS[kind](x),
    "gate_rows": lambda x, gate: x * torch.sigmoid(gate),
    "softcap": lambda x, cap: torch.tanh(x / cap) * cap,
    "scale": lambda x, factor: x * factor,
}


class ReferenceOps(Ops):
    """`step` is the step being computed; the owner sets it."""

    def __init__(
        self,
        cache: attention.Keys,
        weights: ReferenceWeights,
        see: See | None = None,
        ranks: Collectives | None = None,
        adapters: ReferenceAdapters | None = None,
    ) -> None:
        self.step: attention.StepIndex
        self._cache = cache
        self._weights = weights
        self._see = see
        self._ranks = ranks
        self.adapters = adapters or ReferenceAdapters(())

    def apply(self, op: Op, inputs: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> Any:
        compute = PLAIN.get(op.name) or getattr(self, f"_{op.name}")
        result = compute(*inputs, **arguments)
        if self._see is not None:
            self._see(op.name, arguments, inputs, result if isinstance(result, tuple) else (result,))
        return result

    def _embedding(self, table: Parameter, index: Index, offset: int, scale: float, outside: Outside) -> torch.Tensor:
        rows = getattr(self.step, index) + offset
        table_VH = self._weights.tensor(table)
        if outside == "error":
            return table_VH[rows] * scale
        is_here = (rows >= 0) & (rows < len(table_VH))
        return torch.where(is_here[:, None], table_VH[rows.where(is_here, 0)] * scale, 0.0)

    def _all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if self._ranks is not None:
            self._ranks.all_reduce(x)
        return x

    def _linear(self, x: torch.Tensor, weight: Linear) -> torch.Tensor:
        y = torch.cat([x @ self._weights.tensor(part).T for part in weight.parts], dim=-1)
        return y + torch.cat([self._weights.tensor(bias) for bias in weight.biases]) if weight.biases else y

    def _add_adapters(self, y: torch.Tensor, x: torch.Tensor, module: AdaptedModule) -> torch.Tensor:
        return self.adapters.add(y, x, module)

    def _add_table_adapters(self, y: torch.Tensor, module: AdaptedModule, offset: int) -> torch.Tensor:
        return self.adapters.add_table(y, self.step.input_ids + offset, module)

    def _rms_norm(self, x: torch.Tensor, weight: Parameter, eps: float) -> torch.Tensor:
        return rms_norm(x, self._weights.tensor(weight), eps)

    def _add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: Parameter, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + residual
        return self._rms_norm(total, weight, eps), total

    def _norm_queries_keys(
        self, x: torch.Tensor, queries: Parameter, keys: Parameter, query_width: int, key_width: int, eps: float,
        num_ranks: int,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        *parts, values = x.tensor_split([query_width, query_width + key_width], dim=1)
        means = torch.stack([part.square().mean(1) / num_ranks for part in parts], dim=1)
        means = means if num_ranks == 1 else self._all_reduce(means)
        weights = (self._weights.tensor(weight) for weight in (queries, keys))
        factors = (means + eps).rsqrt().unbind(1)
        normed = (p * f[:, None] * weight for p, f, weight in zip(parts, factors, weights, strict=True))
        joined = torch.cat([*normed, values], dim=1)
        return joined if num_ranks == 1 else (joined, means)

    def _layer_norm(self, x: torch.Tensor, weight: Parameter, bias: Parameter | None, eps: float) -> torch.Tensor:
        bias_H = None if bias is None else self._weights.tensor(bias)
        return F.layer_norm(x, x.shape[-1:], self._weights.tensor(weight), bias_H, eps)

    def _gated_activation(self, gate_up: torch.Tensor, kind: Activation) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return ACTIVATIONS[kind](gate) * up

    def _mixture(self, x: torch.Tensor, layer: Mixture) -> torch.Tensor:
        bias = None if layer.bias is None else self._weights.tensor(layer.bias)
        chosen_TK, weights_TK = choose(self._linear(x, layer.router), bias, layer.routing)
        if (placed := self._weights.placed) is not None:
            chosen_TK = placed.slots_of(layer.name, chosen_TK)
        out = torch.zeros_like(x)
        for expert, (gate_up, down) in enumerate(layer.pairs):
            rows, places = (chosen_TK == layer.first_expert + expert).nonzero(as_tuple=True)
            y = self._of_expert(x, rows, gate_up, down, layer.gate)
            out[rows] += y * weights_TK[rows, places, None]
        return out

    def _of_expert(self, x: torch.Tensor, rows: torch.Tensor, up: Linear, down: Linear, gate: Gate) -> torch.Tensor:
        return self._linear(gated(self._linear(x[rows], up), gate), down)

    def _rotary_kv_write(self, qkv: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        heads_TXD = qkv.reshape(len(qkv), -1, layer.head_dim)
        q, k, v = heads_TXD.tensor_split([layer.num_heads, layer.num_heads + layer.num_kv_heads], dim=1)
        if layer.q_norm is not None:
            q = rms_norm(q, self._weights.tensor(layer.q_norm), layer.norm_eps)
        if layer.k_norm is not None:
            k = rms_norm(k, self._weights.tensor(layer.k_norm), layer.norm_eps)
        if layer.rotary is not None:
            cos, sin = (table[self.step.positions] for table in self._weights.rotary(layer.rotary))
            q, k = attention.rotate(q, cos, sin), attention.rotate(k, cos, sin)
        self._cache.write(self.step, layer, k, v)
        return q.flatten(-2)

    def _latent_kv_write(self, q: torch.Tensor, kv: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        latent, rotary = layer.latent, layer.rotary
        assert latent is not None, "the op is one of latents"
        assert rotary is not None, "their keys rotate"
        rotate = attention.rotate_neighbours if latent.interleaves else attention.rotate
        angles = [table[self.step.positions] for table in self._weights.rotary(rotary)]
        c_TR, k_TP = self._normed_latent(kv, layer, latent), kv[:, latent.rank :]
        self._cache.write(self.step, layer, torch.cat([c_TR, rotate(k_TP[:, None], *angles)[:, 0]], dim=-1)[:, None])
        q_TQN, r_TQP = q.view(len(q), layer.num_heads, -1).tensor_split([latent.key_dim], dim=-1)
        keys_QNR, _ = self._ups(latent)
        return torch.cat([torch.einsum("tqn,qnr->tqr", q_TQN, keys_QNR), rotate(r_TQP, *angles)], dim=-1).flatten(-2)

    def _normed_latent(self, kv: torch.Tensor, layer: AttentionLayer, latent: Latent) -> torch.Tensor:
        assert layer.k_norm is not None, "a latent is normed"
        return rms_norm(kv[:, : latent.rank], self._weights.tensor(layer.k_norm), layer.norm_eps)

    def _latent_values(self, x: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        assert layer.latent is not None, "the layer has latents"
        _, values_QVR = self._ups(layer.latent)
        return torch.einsum("tqr,qvr->tqv", x.view(len(x), layer.num_heads, -1), values_QVR).flatten(-2)

    def _ups(self, latent: Latent) -> tuple[torch.Tensor, ...]:
        """Each head's matrices from a latent to its key [N, R] and its value [V, R]."""
        up_QXR = self._weights.tensor(latent.up).view(latent.num_heads, -1, latent.rank)
        return up_QXR.tensor_split([latent.key_dim], dim=1)

    def _paged_attention(self, q: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        sinks_Q = None if layer.sinks is None else self._weights.tensor(layer.sinks)
        return attention.paged_attention(q, layer, self._cache, self.step, sinks_Q)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
