"""The building blocks of decoders: embedding, norms, self-attention, MLPs and layers of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.mixture import Mixture
from octavo.kernels.ops import Activation, Ops, Tensor
from octavo.kernels.parameters import Linear, Parameter


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """tokens[input_id] * scale, through the projection, plus positions[position + position_offset], plus types[which of
    a pair's texts], normed."""

    tokens: Parameter  # [V, H]
    scale: float = 1.0
    positions: Parameter | None = None
    position_offset: int = 0
    projection: Linear | None = None  # to the stream's width, if tokens are narrower
    types: Parameter | None = None
    norm: Norm | None = None

    def __call__(self, ops: Ops) -> Tensor:
        if self.tokens.first is None:
            x = ops.embedding(self.tokens, "input_ids", scale=self.scale)
        else:  # this rank's part of the vocabulary
            part = ops.embedding(self.tokens, "input_ids", offset=-self.tokens.first, scale=self.scale, outside="zeros")
            x = ops.all_reduce(part)
        if self.projection is not None:
            x = ops.linear(x, self.projection)
        if self.positions is not None:
            x = ops.add(x, ops.embedding(self.positions, "positions", offset=self.position_offset))
        if self.types is not None:
            x = ops.add(x, ops.embedding(self.types, "token_types"))
        return x if self.norm is None else self.norm(ops, x)


def product(ops: Ops, x: Tensor, weight: Linear) -> Tensor:
    """x W^T + bias, of all ranks together."""
    y = ops.linear(x, weight)
    return ops.all_reduce(y) if weight.is_partial else y


class Norm(Protocol):
    """The normalisation of a decoder layer."""

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        """norm(x); x stays valid."""

    def add(self, ops: Ops, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """s = x + residual; returns (norm(s), s). The arguments must not be used again."""


@dataclass(frozen=True, slots=True, eq=False)
class RMSNorm:
    weight: Parameter  # [H]
    eps: float

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, ops: Ops, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return ops.add_rms_norm(x, residual, self.weight, self.eps)


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    weight: Parameter  # [H]
    bias: Parameter | None
    eps: float

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, ops: Ops, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = ops.add(x, residual)
        return ops.layer_norm(total, self.weight, self.bias, self.eps), total


class GivenAsIs:
    """No norm, in front of a model's first attention."""

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        return x

    def add(self, ops: Ops, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = ops.add(x, residual)
        return total, total


class Attention(Protocol):
    """A layer's attention, with its projections."""

    @property
    def layer(self) -> AttentionLayer: ...

    @property
    def in_features(self) -> int:
        """H."""

    def attend(self, ops: Ops, x: Tensor) -> Tensor:
        """[T, H] -> [T, all heads' values]: what tokens read of each other."""

    def project(self, ops: Ops, attended: Tensor) -> Tensor:
        """[T, all heads' values] -> [T, H]."""


@dataclass(frozen=True, slots=True, eq=False)
class SelfAttention:
    """norms: of all heads' queries together, and of their keys; none in most families. num_ranks: that share them."""

    qkv: Linear  # [(Q + 2K) * D, H]
    out: Linear  # [H, Q * D]
    layer: AttentionLayer
    norms: tuple[Parameter, Parameter] | None = None  # [Q * D], [K * D]
    num_ranks: int = 1

    @property
    def in_features(self) -> int:
        return self.qkv.in_features

    def attend(self, ops: Ops, x: Tensor) -> Tensor:
        qkv = ops.linear(x, self.qkv)
        if self.norms is not None:
            (q, k), eps = self.norms, self.layer.norm_eps
            normed = ops.norm_queries_keys(qkv, q, k, q.shape[0], k.shape[0], eps, self.num_ranks)
            qkv = normed if self.num_ranks == 1 else normed[0]
        return ops.paged_attention(ops.rotary_kv_write(qkv, self.layer), self.layer)

    def project(self, ops: Ops, attended: Tensor) -> Tensor:
        return product(ops, attended, self.out)


@dataclass(frozen=True, slots=True, eq=False)
class LatentAttention:
    """query_down, query_norm: of queries that come from a small vector, too."""

    query: Linear  # [Q * (N + P), H], or of query_down's outputs
    kv_down: Linear  # [R + P, H]
    out: Linear  # [H, Q * V]
    layer: AttentionLayer
    query_down: Linear | None = None
    query_norm: RMSNorm | None = None

    @property
    def in_features(self) -> int:
        return self.kv_down.in_features

    def attend(self, ops: Ops, x: Tensor) -> Tensor:
        q = ops.linear(self._normed(ops, x), self.query)
        q = ops.latent_kv_write(q, ops.linear(x, self.kv_down), self.layer)
        return ops.latent_values(ops.paged_attention(q, self.layer), self.layer)

    def _normed(self, ops: Ops, x: Tensor) -> Tensor:
        """What the queries' projection reads."""
        if self.query_down is None or self.query_norm is None:
            return x
        return self.query_norm(ops, ops.linear(x, self.query_down))

    def project(self, ops: Ops, attended: Tensor) -> Tensor:
        return product(ops, attended, self.out)


class MLP(Protocol):
    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        """[T, H] -> [T, H]."""


@dataclass(frozen=True, slots=True, eq=False)
class GatedMLP:
    """down(act(gate(x)) * up(x)); gate and up are one product."""

    gate_up: Linear  # [2F, H], gate first
    down: Linear  # [H, F]
    activation: Activation

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        y = self.own(ops, x)
        return ops.all_reduce(y) if self.down.is_partial else y

    def own(self, ops: Ops, x: Tensor) -> Tensor:
        """This rank's part of the result; all ranks' are to be added up."""
        return ops.linear(ops.gated_activation(ops.linear(x, self.gate_up), self.activation), self.down)


@dataclass(frozen=True, slots=True, eq=False)
class PlainMLP:
    """down(act(up(x)))."""

    up: Linear  # [F, H]
    down: Linear  # [H, F]
    activation: Activation

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        return product(ops, ops.activation(ops.linear(x, self.up), self.activation), self.down)


@dataclass(frozen=True, slots=True, eq=False)
class SharedExpert:
    """Computes every token. gate: its result is times sigmoid(gate(x))."""

    mlp: GatedMLP
    gate: Linear | None = None  # [1, H]

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        """Of this rank; all ranks' results are to be added up."""
        y = self.mlp.own(ops, x)
        return y if self.gate is None else ops.gate_rows(y, ops.linear(x, self.gate))


@dataclass(frozen=True, slots=True, eq=False)
class MixtureMLP:
    """The MLP of a layer of experts, with the shared expert that some families add for every token."""

    experts: Mixture
    shared: SharedExpert | None = None

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        shared = None if self.shared is None else self.shared(ops, x)
        y = ops.mixture(x, self.experts)
        if shared is not None:
            y = ops.add(shared, y)
        return ops.all_reduce(y) if self.experts.is_partial else y
