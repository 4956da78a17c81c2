"""The decoder that all families share: a residual stream that each layer reads, normed, and adds to.

    tokens -> embedding -> r
    each layer:   r += [norm] attention(norm r)        the bracketed norms: Gemma only
                  r += [norm] mlp(norm r)
    logits = head(norm r)

Each addition is fused with the norm that follows it, so the stream is passed as a pair: the last layer's output, not
yet added, and the sum so far.

After the last layer's attention, tokens no longer depend on each other, and a prompt needs only its last token's
logits. So `body` ends there, and a head computes the rest for the requested tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octavo.kernels.ops import Head, Ops, Tensor
from octavo.kernels.parameters import Linear
from octavo.layers.blocks import MLP, Embedding, Norm, SelfAttention


class Layer(Protocol):
    """One layer in two parts. Layers pass on (output not yet added, or None; the sum so far)."""

    @property
    def attention(self) -> SelfAttention: ...

    def attend(self, ops: Ops, pending: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The first part, through attention: its output [T, Q * D], and the sum so far."""

    def finish(self, ops: Ops, attended: Tensor, residual: Tensor) -> tuple[Tensor | None, Tensor]:
        """The rest, for each token separately."""


@dataclass(frozen=True, slots=True, eq=False)
class DecoderLayer:
    """Applies a norm to a copy of the stream before each half."""

    attention_norm: Norm
    attention: SelfAttention
    mlp_norm: Norm
    mlp: MLP
    attention_output_norm: Norm | None = None
    mlp_output_norm: Norm | None = None

    def attend(self, ops: Ops, pending: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        if pending is None:
            x = self.attention_norm(ops, residual)
        else:
            x, residual = self.attention_norm.add(ops, pending, residual)
        return self.attention.attend(ops, x), residual

    def finish(self, ops: Ops, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        x = self.attention.project(ops, attended)
        if self.attention_output_norm is not None:
            x = self.attention_output_norm(ops, x)
        x, residual = self.mlp_norm.add(ops, x, residual)
        x = self.mlp(ops, x)
        if self.mlp_output_norm is not None:
            x = self.mlp_output_norm(ops, x)
        return x, residual


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """A whole model; implements `octavo.kernels.ops.Model`. projection: to the head's width, if it is not the
    stream's."""

    embedding: Embedding
    layers: tuple[Layer, ...]
    norm: Norm | None
    head: Linear  # [V, H]
    logits_softcap: float | None = None
    projection: Linear | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("input_ids",)

    @property
    def heads(self) -> dict[str, Head]:
        return {"logits": self._logits}

    def body(self, ops: Ops) -> tuple[Tensor, Tensor]:
        pending, residual = None, self.embedding(ops)
        *layers, last = self.layers
        for layer in layers:
            pending, residual = layer.finish(ops, *layer.attend(ops, pending, residual))
        return last.attend(ops, pending, residual)

    def _logits(self, ops: Ops, attended: Tensor, residual: Tensor) -> Tensor:
        hidden = self._hidden(ops, *self.layers[-1].finish(ops, attended, residual))
        if self.projection is not None:
            hidden = ops.linear(hidden, self.projection)
        logits = ops.linear(hidden, self.head)
        return logits if self.logits_softcap is None else ops.softcap(logits, self.logits_softcap)

    def _hidden(self, ops: Ops, pending: Tensor | None, residual: Tensor) -> Tensor:
        """The last layer's output, added and normed."""
        if pending is None:
            return residual if self.norm is None else self.norm(ops, residual)
        return ops.add(pending, residual) if self.norm is None else self.norm.add(ops, pending, residual)[0]
