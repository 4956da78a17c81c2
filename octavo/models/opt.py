"""OPT: learned positions, LayerNorm, relu, biases everywhere.

The position table has two rows before position 0's, left over from how the model was trained;
`num_position_embeddings` does not count them.

`Architecture.extra`, what OPT-350M (the first three) and Galactica (the last, and no biases) do differently:
do_layer_norm_before (default True): False norms the stream after each half of a layer, not a copy before it;
has_final_norm (default True): a norm before the head;
word_embed_proj_dim (default hidden_size): the width of embedding and head, with a projection between it and the
stream's at both ends;
layer_norm_elementwise_affine (default True): norms have weights and biases.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.kernels.ops import Ops, Tensor
from octavo.layers.blocks import MLP, Embedding, LayerNorm, PlainMLP, SelfAttention
from octavo.models import llama
from octavo.models.architecture import Architecture
from octavo.models.attention import AttentionSpecs
from octavo.models.decoder import Decoder, DecoderLayer
from octavo.models.weights import TensorTable, Weights, with_biases

POSITION_OFFSET = 2


def tensors(a: Architecture) -> TensorTable:
    hidden, inner, embedded = a.hidden_size, a.intermediate_size, _embedded_size(a)
    table: TensorTable = {
        "model.decoder.embed_tokens.weight": (a.vocab_size, embedded),
        "model.decoder.embed_positions.weight": (a.num_position_embeddings + POSITION_OFFSET, hidden),
    }
    if embedded != hidden:
        table["model.decoder.project_in.weight"] = (hidden, embedded)
        table["model.decoder.project_out.weight"] = (embedded, hidden)
    if _has_final_norm(a):
        table |= _norm(a, "model.decoder.final_layer_norm")
    if not a.tie_word_embeddings:
        table["lm_head.weight"] = (a.vocab_size, embedded)
    linear: TensorTable = {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (hidden, hidden),
        "self_attn.v_proj.weight": (hidden, hidden),
        "self_attn.out_proj.weight": (hidden, hidden),
        "fc1.weight": (inner, hidden),
        "fc2.weight": (hidden, inner),
    }
    layer = (with_biases(linear) if a.attention_bias else linear) | _norm(a, "self_attn_layer_norm", "final_layer_norm")
    for i in range(a.num_layers):
        table |= {f"model.decoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    return table


def _embedded_size(a: Architecture) -> int:
    return int(a.extra.get("word_embed_proj_dim", a.hidden_size))


def _norm(a: Architecture, *names: str) -> TensorTable:
    if not a.extra.get("layer_norm_elementwise_affine", True):
        return {}
    return with_biases({f"{name}.weight": (a.hidden_size,) for name in names})


def build(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    w = weights.under("model.decoder")
    has_projections = w.lists("project_in.weight")
    embedding = Embedding(
        w.embedding("embed_tokens"),
        positions=w.parameter("embed_positions.weight"),
        position_offset=POSITION_OFFSET,
        projection=w.replicated("project_in") if has_projections else None,
    )
    norms_before = a.extra.get("do_layer_norm_before", True)
    layer = _layer_normed_before if norms_before else _layer_normed_after
    return Decoder(
        embedding=embedding,
        layers=tuple(layer(a, w.under(f"layers.{i}"), specs, i) for i in range(a.num_layers)),
        norm=w.layer_norm("final_layer_norm", a.norm_eps, a.hidden_size) if _has_final_norm(a) else None,
        projection=w.replicated("project_out") if has_projections else None,
        head=weights.head("lm_head", embedding.tokens),
    )


def _has_final_norm(a: Architecture) -> bool:
    return bool(a.extra.get("has_final_norm", True))


def _layer_normed_before(a: Architecture, w: Weights, specs: AttentionSpecs, index: int) -> DecoderLayer:
    return DecoderLayer(
        attention_norm=w.layer_norm("self_attn_layer_norm", a.norm_eps, a.hidden_size),
        attention=_attention(w, specs, index),
        mlp_norm=w.layer_norm("final_layer_norm", a.norm_eps, a.hidden_size),
        mlp=_mlp(a, w),
    )


@dataclass(frozen=True, slots=True, eq=False)
class LayerNormedAfter:
    """r = norm(r + attention(r)); r = norm(r + mlp(r)). Implements `octavo.models.decoder.Layer`."""

    attention: SelfAttention
    attention_norm: LayerNorm
    mlp: MLP
    mlp_norm: LayerNorm

    def attend(self, ops: Ops, pending: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        assert pending is None, "the layer below has added and normed its output"
        return self.attention.attend(ops, residual), residual

    def finish(self, ops: Ops, attended: Tensor, residual: Tensor) -> tuple[None, Tensor]:
        normed, _ = self.attention_norm.add(ops, self.attention.project(ops, attended), residual)
        normed, _ = self.mlp_norm.add(ops, self.mlp(ops, normed), normed)
        return None, normed


def _layer_normed_after(a: Architecture, w: Weights, specs: AttentionSpecs, index: int) -> LayerNormedAfter:
    return LayerNormedAfter(
        attention=_attention(w, specs, index),
        attention_norm=w.layer_norm("self_attn_layer_norm", a.norm_eps, a.hidden_size),
        mlp=_mlp(a, w),
        mlp_norm=w.layer_norm("final_layer_norm", a.norm_eps, a.hidden_size),
    )


def _attention(w: Weights, specs: AttentionSpecs, index: int) -> SelfAttention:
    return w.attention(specs.layer(index), "self_attn.out_proj", *llama.QKV)


def _mlp(a: Architecture, w: Weights) -> MLP:
    return PlainMLP(w.column("fc1"), w.row("fc2"), a.activation)
