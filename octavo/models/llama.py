"""Llama and the families that are Llama by another name: Mistral, Yi, SmolLM2.

RMSNorm before each half of a layer, rotary positions, grouped keys and values, gated MLP. A sliding window
(Mistral) and a long-context rope (Llama 3) are values of the Architecture. Qwen adds tensors to this table
and is otherwise built here too.
"""

from __future__ import annotations

from octavo.layers.attention import SelfAttention
from octavo.layers.embedding import Embedding
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.models.architecture import Architecture
from octavo.models.attention import AttentionSpecs
from octavo.models.decoder import Decoder, DecoderLayer
from octavo.models.weights import TensorTable, Weights


def tensors(a: Architecture) -> TensorTable:
    table: TensorTable = outer_tensors(a)
    q, kv, hidden, inner = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.hidden_size, a.intermediate_size
    for i in range(a.num_layers):
        layer: TensorTable = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (q, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, q),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        if a.attention_bias:
            layer |= biases(layer, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
        if a.mlp_bias:
            layer |= biases(layer, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        table |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return table


def outer_tensors(a: Architecture) -> TensorTable:
    """All but the layers."""
    table: TensorTable = {
        "model.embed_tokens.weight": (a.vocab_size, a.hidden_size),
        "model.norm.weight": (a.hidden_size,),
    }
    if not a.tie_word_embeddings:
        table["lm_head.weight"] = (a.vocab_size, a.hidden_size)
    return table


def biases(layer: TensorTable, *names: str) -> TensorTable:
    """The bias of each named linear, as long as its weight has rows."""
    return {f"{name}.bias": layer[f"{name}.weight"][:1] for name in names}


def build(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    embedding = Embedding(weights.tensor("model.embed_tokens.weight"))
    return Decoder(
        embedding=embedding,
        layers=tuple(_layer(a, weights.under(f"model.layers.{i}"), specs, i) for i in range(a.num_layers)),
        norm=RMSNorm(weights.vector("model.norm.weight"), a.norm_eps),
        head=weights.head("lm_head", embedding.tokens),
        logits_softcap=a.logits_softcap,
    )


def _layer(a: Architecture, weights: Weights, specs: AttentionSpecs, index: int) -> DecoderLayer:
    spec = specs.layer(
        index, weights.optional_vector("self_attn.q_norm.weight"), weights.optional_vector("self_attn.k_norm.weight")
    )
    return DecoderLayer(
        attention_norm=RMSNorm(weights.vector("input_layernorm.weight"), a.norm_eps),
        attention=SelfAttention(
            qkv=weights.linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            out=weights.linear("self_attn.o_proj"),
            layer=spec,
        ),
        mlp_norm=RMSNorm(weights.vector("post_attention_layernorm.weight"), a.norm_eps),
        mlp=GatedMLP(weights.linear("mlp.gate_proj", "mlp.up_proj"), weights.linear("mlp.down_proj"), a.activation),
    )
