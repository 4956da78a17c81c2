"""Gemma 2 and Gemma 3, text only.

What differs from Llama: embeddings are scaled by sqrt(hidden size); norm weights are stored as w and used as
1 + w; the output of each half of a layer is normed before it is added; the MLP's gate is a gelu.
Gemma 3 norms each head's queries and keys and gives sliding layers a rope of their own; Gemma 2 caps scores
and logits instead. Windows, ropes, caps and the score's scale are values of the Architecture.
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from octavo.kernels.parameters import Parameter
from octavo.layers.blocks import Embedding, GatedMLP, RMSNorm
from octavo.models import llama
from octavo.models.architecture import Architecture
from octavo.models.attention import AttentionSpecs
from octavo.models.decoder import Decoder, DecoderLayer
from octavo.models.weights import TensorTable, Weights
from octavo.quantization.registry import Dense


def gemma2_tensors(a: Architecture) -> TensorTable:
    table = llama.tensors(a)
    for i in range(a.num_layers):
        table[f"model.layers.{i}.pre_feedforward_layernorm.weight"] = (a.hidden_size,)
        table[f"model.layers.{i}.post_feedforward_layernorm.weight"] = (a.hidden_size,)
    return table


def gemma3_tensors(a: Architecture) -> TensorTable:
    return gemma2_tensors(a) | llama.head_norms(a)


def build(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    embedding = Embedding(weights.embedding("model.embed_tokens"), scale=sqrt(a.hidden_size))
    return Decoder(
        embedding=embedding,
        layers=tuple(_layer(a, weights.under(f"model.layers.{i}"), specs, i) for i in range(a.num_layers)),
        norm=_norm(a, weights, "model.norm"),
        head=weights.head("lm_head", embedding.tokens),
        logits_softcap=a.logits_softcap,
    )


def _layer(a: Architecture, weights: Weights, specs: AttentionSpecs, index: int) -> DecoderLayer:
    has_head_norms = weights.lists("self_attn.q_norm.weight")
    q_norm = _plus_one(weights, "self_attn.q_norm") if has_head_norms else None
    k_norm = _plus_one(weights, "self_attn.k_norm") if has_head_norms else None
    return DecoderLayer(
        attention_norm=_norm(a, weights, "input_layernorm"),
        attention=weights.attention(specs.layer(index, q_norm, k_norm), "self_attn.o_proj", *llama.QKV),
        attention_output_norm=_norm(a, weights, "post_attention_layernorm"),
        mlp_norm=_norm(a, weights, "pre_feedforward_layernorm"),
        mlp=GatedMLP(weights.column(*llama.GATE_UP, num_segments=2), weights.row("mlp.down_proj"), a.activation),
        mlp_output_norm=_norm(a, weights, "post_feedforward_layernorm"),
    )


def _norm(a: Architecture, weights: Weights, name: str) -> RMSNorm:
    return RMSNorm(_plus_one(weights, name), a.norm_eps)


def _plus_one(weights: Weights, name: str) -> Parameter:
    return replace(weights.parameter(f"{name}.weight"), scheme=Dense(added=1.0))
