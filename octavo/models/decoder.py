"""The decoder that all families share: a residual stream; each layer norms it, computes, and adds to it.

    tokens -> embedding -> r
    each layer:   r += [norm] attention(norm r)        the bracketed norms: Gemma only
                  r += [norm] mlp(norm r)
    logits = head(norm r)

Each addition is fused with the norm that follows it, so the stream is passed as a pair: the last layer's output, not
yet added, and the sum so far.

After the last layer's attention, tokens no longer depend on each other, and a prompt needs only its last token's
logits. So `body` ends there, and a head computes the rest for the requested tokens only.

`AttentionSpecs` builds the AttentionLayer of each layer from an Architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

from octavo.kernels.attention_layer import AttentionLayer, KVScales, RotaryTable, ScoreBias
from octavo.kernels.latent import Latent
from octavo.kernels.model import TOKEN_IDS, Head
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear, Parameter
from octavo.layers.blocks import MLP, Attention, Embedding, Norm
from octavo.layers.rotary import RotarySetting, rotary_table
from octavo.models.architecture import Architecture, RopeConfig

#: (cache group, index in the group): where a layer's keys and values live
LayerSlot = tuple[int, int]


class Layer(Protocol):
    """One layer in two parts. Layers pass on (output not yet added, or None; the sum so far)."""

    @property
    def attention(self) -> Attention: ...

    def attend(self, ops: Ops, pending: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The first part, through attention: all heads' values, and the sum so far."""

    def finish(self, ops: Ops, attended: Tensor, residual: Tensor) -> tuple[Tensor | None, Tensor]:
        """The rest, for each token separately."""


@dataclass(frozen=True, slots=True, eq=False)
class DecoderLayer:
    """Applies a norm to a copy of the stream before each half. scale: multiplies what each half adds."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: MLP
    attention_output_norm: Norm | None = None
    mlp_output_norm: Norm | None = None
    scale: float = 1.0

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
        x, residual = self.mlp_norm.add(ops, self._scaled(ops, x), residual)
        x = self.mlp(ops, x)
        if self.mlp_output_norm is not None:
            x = self.mlp_output_norm(ops, x)
        return self._scaled(ops, x), residual

    def _scaled(self, ops: Ops, x: Tensor) -> Tensor:
        return x if self.scale == 1 else ops.scale(x, self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class LayerWithNormedOutputs:
    """r += norm(attention(r)); r += norm(mlp(r))."""

    attention: Attention
    attention_norm: Norm
    mlp: MLP
    mlp_norm: Norm

    def attend(self, ops: Ops, pending: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        if pending is not None:
            residual = ops.add(pending, residual)
        return self.attention.attend(ops, residual), residual

    def finish(self, ops: Ops, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        residual = ops.add(self.attention_norm(ops, self.attention.project(ops, attended)), residual)
        return self.mlp_norm(ops, self.mlp(ops, residual)), residual


@dataclass(frozen=True, slots=True, eq=False)
class LayerNormedAfter:
    """r = norm(r + attention(r)); r = norm(r + mlp(r))."""

    attention: Attention
    attention_norm: Norm
    mlp: MLP
    mlp_norm: Norm

    def attend(self, ops: Ops, pending: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        assert pending is None, "the layer below has added and normed its output"
        return self.attention.attend(ops, residual), residual

    def finish(self, ops: Ops, attended: Tensor, residual: Tensor) -> tuple[None, Tensor]:
        normed, _ = self.attention_norm.add(ops, self.attention.project(ops, attended), residual)
        normed, _ = self.mlp_norm.add(ops, self.mlp(ops, normed), normed)
        return None, normed


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """A whole model, or a stage of one; implements `octavo.kernels.model.Model`. embedding None: the hidden states of
    the stage before come in. head None: the stream goes out, to the next stage, or normed, if the model embeds.
    projection: to the LM head's width, if the stream has another."""

    embedding: Embedding | None
    layers: tuple[Layer, ...]
    norm: Norm | None
    head: Linear | None  # [V, H]
    logits_softcap: float | None = None
    logits_scale: float = 1.0
    projection: Linear | None = None
    embeds: bool = False

    @property
    def inputs(self) -> Mapping[str, int]:
        return TOKEN_IDS if self.embedding else {"hidden_states": self.layers[0].attention.in_features}

    @property
    def heads(self) -> dict[str, Head]:
        if self.embeds:
            return {"hidden_states": self._embed}
        return {"hidden_states": self._stream} if self.head is None else {"logits": self._logits}

    def stage(self, layers: range) -> Decoder:
        """These layers alone, with what goes before the first layer and after the last one where they have it."""
        is_first, is_last = layers.start == 0, layers.stop == len(self.layers)
        return replace(
            self,
            embedding=self.embedding if is_first else None,
            layers=self.layers[layers.start : layers.stop],
            head=self.head if is_last else None,
        )

    def body(self, ops: Ops, *hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        (residual,) = hidden_states if self.embedding is None else (self.embedding(ops),)
        pending = None
        *layers, last = self.layers
        for layer in layers:
            pending, residual = layer.finish(ops, *layer.attend(ops, pending, residual))
        return last.attend(ops, pending, residual)

    def _stream(self, ops: Ops, attended: Tensor, residual: Tensor) -> Tensor:
        pending, residual = self.layers[-1].finish(ops, attended, residual)
        return residual if pending is None else ops.add(pending, residual)

    def _embed(self, ops: Ops, attended: Tensor, residual: Tensor) -> Tensor:
        """The last layer's output, added and normed."""
        pending, residual = self.layers[-1].finish(ops, attended, residual)
        if pending is None:
            return residual if self.norm is None else self.norm(ops, residual)
        return ops.add(pending, residual) if self.norm is None else self.norm.add(ops, pending, residual)[0]

    def _logits(self, ops: Ops, attended: Tensor, residual: Tensor) -> Tensor:
        return self.logits_of(ops, self._embed(ops, attended, residual))

    def logits_of(self, ops: Ops, hidden: Tensor) -> Tensor:
        """hidden: normed."""
        assert self.head is not None, "the last stage has the LM head"
        if self.projection is not None:
            hidden = ops.linear(hidden, self.projection)
        logits = ops.linear(hidden, self.head)
        if self.logits_scale != 1:
            logits = ops.scale(logits, self.logits_scale)
        return logits if self.logits_softcap is None else ops.softcap(logits, self.logits_softcap)


class AttentionSpecs:
    """Layers with the same rope share one table."""

    def __init__(
        self,
        architecture: Architecture,
        slots: Sequence[LayerSlot],
        max_model_len: int,
        scales: Mapping[int, KVScales] = MappingProxyType({}),
    ) -> None:
        assert len(slots) == architecture.num_layers, "each layer needs a cache slot"
        self._architecture = architecture
        self._slots = slots
        self._max_model_len = max_model_len
        self._scales = scales
        self._bias: ScoreBias | None = None
        self._tables: dict[int, RotaryTable] = {}  # by the RopeConfig's identity: it holds a dict and has no hash

    def with_bias(self, bias: ScoreBias) -> AttentionSpecs:
        """The same, for layers whose scores have a bias."""
        made = AttentionSpecs(self._architecture, self._slots, self._max_model_len, self._scales)
        made._bias = bias
        return made

    def layer(
        self,
        index: int,
        q_norm: Parameter | None = None,
        k_norm: Parameter | None = None,
        sinks: Parameter | None = None,
        latent: Latent | None = None,
    ) -> AttentionLayer:
        """The norms and sinks are of the rank's heads; all else is of all heads."""
        a = self._architecture
        group, index_in_group = self._slots[index]
        window = a.windows[index] if a.windows else None
        return AttentionLayer(
            group=group,
            index_in_group=index_in_group,
            num_heads=a.num_heads,
            num_kv_heads=a.num_kv_heads,
            head_dim=a.head_dim,
            scale=a.head_dim**-0.5 if a.attention_scale is None else a.attention_scale,
            window=window,
            softcap=a.attention_softcap,
            q_norm=q_norm,
            k_norm=k_norm,
            norm_eps=a.norm_eps,
            rotary=self._rotary(a.rope if window is None or a.local_rope is None else a.local_rope),
            scales=self._scales.get(index),
            bias=self._bias,
            is_causal=a.is_causal,
            sinks=sinks,
            latent=latent,
        )

    def _rotary(self, rope: RopeConfig | None) -> RotaryTable | None:
        if rope is None:
            return None
        if id(rope) not in self._tables:
            self._tables[id(rope)] = rotary_table(
                RotarySetting(
                    theta=rope.theta,
                    rotary_dim=round(self._architecture.head_dim * rope.partial_rotary_factor),
                    trained_len=self._architecture.max_position_embeddings,
                    scaling=rope.scaling,
                ),
                self._max_model_len,
            )
        return self._tables[id(rope)]
