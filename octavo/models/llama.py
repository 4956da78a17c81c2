"""Llama, the families that are Llama by another name (Mistral, Granite), and those close to it: Qwen, Phi-3, Gemma.

RMSNorm before each half of a layer, rotary positions, grouped keys and values, gated MLP. A sliding window
(Mistral), a long-context rope (Llama 3) and the scales of Granite's stream are values of the Architecture. Qwen adds
tensors to Llama's table, and Phi-3 packs them. OLMo 2 norms the queries of all heads together, and their keys, and the
output of each half of a layer instead of its input.

Gemma 2 and 3, text only, scale embeddings by sqrt(hidden size), store a norm's weight as w and use 1 + w, and norm the
output of each half of a layer before it is added. Gemma 3 also norms each head's queries and keys. Its windows, ropes,
caps and attention scale are values of the Architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

from octavo.kernels.parameters import Parameter, Shard
from octavo.layers.blocks import MLP, Attention, Embedding, RMSNorm, SelfAttention
from octavo.models.architecture import Architecture
from octavo.models.decoder import AttentionSpecs, Decoder, DecoderLayer, Layer, LayerWithNormedOutputs
from octavo.models.weights import TensorTable, Weights, in_layers, with_biases
from octavo.quantization.registry import Dense

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_WIDE_NORMS = ("olmo2", "olmoe")


def tensors(a: Architecture) -> TensorTable:
    q, kv, hidden, inner = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.hidden_size, a.intermediate_size
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
        layer = with_biases(layer, *QKV, "self_attn.o_proj")
    if a.mlp_bias:
        layer = with_biases(layer, *GATE_UP, "mlp.down_proj")
    return outer_tensors(a) | in_layers(a, layer)


def outer_tensors(a: Architecture) -> TensorTable:
    """All but the layers."""
    table: TensorTable = {
        "model.embed_tokens.weight": (a.vocab_size, a.hidden_size),
        "model.norm.weight": (a.hidden_size,),
    }
    if not a.tie_word_embeddings:
        table["lm_head.weight"] = (a.vocab_size, a.hidden_size)
    return table


def head_norms(a: Architecture) -> TensorTable:
    """The norms of each head's queries and keys, which Qwen 3 and Gemma 3 add."""
    return in_layers(a, dict.fromkeys(("self_attn.q_norm.weight", "self_attn.k_norm.weight"), (a.head_dim,)))


def wide_norms(a: Architecture) -> TensorTable:
    """The norms of all heads' queries and keys, which OLMo 2 and OLMoE add."""
    q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    return in_layers(a, {"self_attn.q_norm.weight": (q,), "self_attn.k_norm.weight": (kv,)})


def build(
    a: Architecture,
    weights: Weights,
    specs: AttentionSpecs,
    *,
    qkv: tuple[str, ...] = QKV,
    gate_up: tuple[str, ...] = GATE_UP,
    attention: Callable[[int, Weights], Attention] | None = None,
    mlp: Callable[[int, Weights], MLP] | None = None,
) -> Decoder:
    """qkv, gate_up: the tensors that make up the two packed projections. attention, mlp: build a layer's, from its
    index and its weights, where they are others."""

    def layer(index: int) -> DecoderLayer:
        w = weights.under(f"model.layers.{index}")
        return DecoderLayer(
            attention_norm=w.rms_norm("input_layernorm", a.norm_eps),
            attention=attention(index, w) if attention else _attention(a, w, specs, index, qkv),
            mlp_norm=w.rms_norm("post_attention_layernorm", a.norm_eps),
            mlp=mlp(index, w) if mlp else w.gated_mlp(gate_up, "mlp.down_proj", a.activation),
            scale=a.residual_scale,
        )

    return _decoder(a, weights, layer)


def _decoder(a: Architecture, weights: Weights, layer: Callable[[int], Layer]) -> Decoder:
    embedding = Embedding(weights.embedding("model.embed_tokens"), scale=a.embedding_scale)
    return Decoder(
        embedding=embedding,
        layers=tuple(layer(i) for i in range(a.num_layers)),
        norm=weights.rms_norm("model.norm", a.norm_eps),
        head=weights.head("lm_head", embedding.tokens),
        logits_softcap=a.logits_softcap,
        logits_scale=a.logits_scale,
    )


def _attention(a: Architecture, w: Weights, specs: AttentionSpecs, index: int, qkv: tuple[str, ...]) -> SelfAttention:
    if a.family in _WIDE_NORMS:
        heads = {"q": a.num_heads, "k": a.num_kv_heads}
        q, k = (w.parameter(f"self_attn.{x}_norm.weight", Shard.heads(a.num_heads, each)) for x, each in heads.items())
        own = w.attention(specs.layer(index), "self_attn.o_proj", *qkv)
        return replace(own, norms=(q, k), num_ranks=w.num_ranks)
    q_norm, k_norm = (w.optional(f"self_attn.{x}_norm.weight") for x in "qk")
    sinks = w.optional("self_attn.sinks", Shard.heads(a.num_heads, a.num_heads))
    return w.attention(specs.layer(index, q_norm, k_norm, sinks), "self_attn.o_proj", *qkv)


def qwen2_tensors(a: Architecture) -> TensorTable:
    names = [f"model.layers.{i}.{projection}" for i in range(a.num_layers) for projection in QKV]
    return with_biases(tensors(a), *names)


def qwen3_tensors(a: Architecture) -> TensorTable:
    return tensors(a) | head_norms(a)


def olmo2_tensors(a: Architecture) -> TensorTable:
    table = {name: shape for name, shape in tensors(a).items() if not name.endswith(".input_layernorm.weight")}
    return table | wide_norms(a) | in_layers(a, {"post_feedforward_layernorm.weight": (a.hidden_size,)})


def build_olmo2(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    def layer(index: int) -> LayerWithNormedOutputs:
        w = weights.under(f"model.layers.{index}")
        return LayerWithNormedOutputs(
            attention=_attention(a, w, specs, index, QKV),
            attention_norm=w.rms_norm("post_attention_layernorm", a.norm_eps),
            mlp=w.gated_mlp(GATE_UP, "mlp.down_proj", a.activation),
            mlp_norm=w.rms_norm("post_feedforward_layernorm", a.norm_eps),
        )

    return _decoder(a, weights, layer)


def phi3_tensors(a: Architecture) -> TensorTable:
    q, kv, hidden, inner = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.hidden_size, a.intermediate_size
    layer: TensorTable = {
        "input_layernorm.weight": (hidden,),
        "self_attn.qkv_proj.weight": (q + 2 * kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_up_proj.weight": (2 * inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    return outer_tensors(a) | in_layers(a, layer)


def build_phi3(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    return build(a, weights, specs, qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",))


def gemma2_tensors(a: Architecture) -> TensorTable:
    norms = ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
    return tensors(a) | in_layers(a, dict.fromkeys(norms, (a.hidden_size,)))


def gemma3_tensors(a: Architecture) -> TensorTable:
    return gemma2_tensors(a) | head_norms(a)


def build_gemma(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    embedding = Embedding(weights.embedding("model.embed_tokens"), scale=sqrt(a.hidden_size))
    return Decoder(
        embedding=embedding,
        layers=tuple(_gemma_layer(a, weights.under(f"model.layers.{i}"), specs, i) for i in range(a.num_layers)),
        norm=_gemma_norm(a, weights, "model.norm"),
        head=weights.head("lm_head", embedding.tokens),
        logits_softcap=a.logits_softcap,
    )


def _gemma_layer(a: Architecture, weights: Weights, specs: AttentionSpecs, index: int) -> DecoderLayer:
    has_head_norms = weights.lists("self_attn.q_norm.weight")
    q_norm, k_norm = (_plus_one(weights, f"self_attn.{x}_norm") if has_head_norms else None for x in "qk")
    return DecoderLayer(
        attention_norm=_gemma_norm(a, weights, "input_layernorm"),
        attention=weights.attention(specs.layer(index, q_norm, k_norm), "self_attn.o_proj", *QKV),
        attention_output_norm=_gemma_norm(a, weights, "post_attention_layernorm"),
        mlp_norm=_gemma_norm(a, weights, "pre_feedforward_layernorm"),
        mlp=weights.gated_mlp(GATE_UP, "mlp.down_proj", a.activation),
        mlp_output_norm=_gemma_norm(a, weights, "post_feedforward_layernorm"),
    )


def _gemma_norm(a: Architecture, weights: Weights, name: str) -> RMSNorm:
    return RMSNorm(_plus_one(weights, name), a.norm_eps)


def _plus_one(weights: Weights, name: str) -> Parameter:
    return replace(weights.parameter(f"{name}.weight"), scheme=Dense(added=1.0))
