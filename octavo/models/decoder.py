"""The decoder that all families share: a residual stream that each layer reads, normed, and adds to.

    tokens -> embedding -> r
    each layer:   r += [norm] attention(norm r)        the bracketed norms: Gemma only
                  r += [norm] mlp(norm r)
    hidden = norm r   ->   head   ->   logits

Each addition is fused with the norm that follows it, which is why the stream travels as a pair: the last
layer's output, not yet added, and the sum so far.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.kernels.ops import LinearWeight, Ops, Tensor
from octavo.layers.attention import SelfAttention
from octavo.layers.embedding import Embedding
from octavo.layers.mlp import MLP
from octavo.layers.norm import Norm


@dataclass(frozen=True, slots=True, eq=False)
class DecoderLayer:
    attention_norm: Norm
    attention: SelfAttention
    mlp_norm: Norm
    mlp: MLP
    attention_output_norm: Norm | None = None
    mlp_output_norm: Norm | None = None

    def __call__(self, ops: Ops, pending: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(output of the layer below, not yet added; sum so far) -> the same after this layer."""
        if pending is None:
            x = self.attention_norm(ops, residual)
        else:
            x, residual = self.attention_norm.add(ops, pending, residual)
        x = self.attention(ops, x)
        if self.attention_output_norm is not None:
            x = self.attention_output_norm(ops, x)
        x, residual = self.mlp_norm.add(ops, x, residual)
        x = self.mlp(ops, x)
        if self.mlp_output_norm is not None:
            x = self.mlp_output_norm(ops, x)
        return x, residual


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """A whole model; implements `octavo.kernels.ops.Model`."""

    embedding: Embedding
    layers: tuple[DecoderLayer, ...]
    norm: Norm
    head: LinearWeight  # [V, H]
    logits_softcap: float | None = None

    def forward(self, ops: Ops) -> Tensor:
        pending, residual = None, self.embedding(ops)
        for layer in self.layers:
            pending, residual = layer(ops, pending, residual)
        hidden, _ = self.norm.add(ops, pending, residual)
        return hidden

    def logits(self, ops: Ops, hidden: Tensor) -> Tensor:
        logits = ops.linear(hidden, self.head)
        return logits if self.logits_softcap is None else ops.softcap(logits, self.logits_softcap)
