"""GPT-2 and OPT: learned positions, LayerNorm, biases everywhere, plain MLP.

GPT-2's projections are [out, in] here as everywhere; Hugging Face's files store them [in, out], and the reader
transposes them.

OPT's activation is a relu. Its position table has two rows before position 0's, left over from training;
`num_position_embeddings` does not count them. OPT-350M differs in the first three values of `Architecture.extra`
(in brackets their defaults); Galactica differs in the last, and has no biases:

    do_layer_norm_before (True)           False: norm the stream after each half of a layer, not a copy before it
    has_final_norm (True)                 there is a norm before the LM head
    word_embed_proj_dim (hidden_size)     width of embedding and LM head; projections connect it to the stream
    layer_norm_elementwise_affine (True)  norms have weights and biases
"""

from __future__ import annotations

from octavo.layers.blocks import Embedding
from octavo.models import llama
from octavo.models.architecture import Architecture
from octavo.models.decoder import AttentionSpecs, Decoder, DecoderLayer, LayerNormedAfter
from octavo.models.weights import TensorTable, Weights, in_layers, with_biases

OPT_POSITION_OFFSET = 2


def tensors(a: Architecture) -> TensorTable:
    hidden, inner = a.hidden_size, a.intermediate_size
    table: TensorTable = {
        "transformer.wte.weight": (a.vocab_size, hidden),
        "transformer.wpe.weight": (a.num_position_embeddings, hidden),
        "transformer.ln_f.weight": (hidden,),
        "transformer.ln_f.bias": (hidden,),
    }
    if not a.tie_word_embeddings:
        table["lm_head.weight"] = (a.vocab_size, hidden)
    layer: TensorTable = with_biases(
        {
            "ln_1.weight": (hidden,),
            "attn.c_attn.weight": (3 * hidden, hidden),
            "attn.c_proj.weight": (hidden, hidden),
            "ln_2.weight": (hidden,),
            "mlp.c_fc.weight": (inner, hidden),
            "mlp.c_proj.weight": (hidden, inner),
        }
    )
    return table | in_layers(a, layer, "transformer.h")


def build(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    embedding = Embedding(weights.embedding("transformer.wte"), positions=weights.parameter("transformer.wpe.weight"))
    return Decoder(
        embedding=embedding,
        layers=tuple(_layer(a, weights.under(f"transformer.h.{i}"), specs, i) for i in range(a.num_layers)),
        norm=weights.layer_norm("transformer.ln_f", a.norm_eps, a.hidden_size),
        head=weights.head("lm_head", embedding.tokens),
    )


def _layer(a: Architecture, weights: Weights, specs: AttentionSpecs, index: int) -> DecoderLayer:
    return DecoderLayer(
        attention_norm=weights.layer_norm("ln_1", a.norm_eps, a.hidden_size),
        attention=weights.attention(specs.layer(index), "attn.c_proj", "attn.c_attn"),
        mlp_norm=weights.layer_norm("ln_2", a.norm_eps, a.hidden_size),
        mlp=weights.plain_mlp("mlp.c_fc", "mlp.c_proj", a.activation),
    )


def opt_tensors(a: Architecture) -> TensorTable:
    hidden, inner = a.hidden_size, a.intermediate_size
    embedded = int(a.extra.get("word_embed_proj_dim", hidden))
    table: TensorTable = {
        "model.decoder.embed_tokens.weight": (a.vocab_size, embedded),
        "model.decoder.embed_positions.weight": (a.num_position_embeddings + OPT_POSITION_OFFSET, hidden),
    }
    if embedded != hidden:
        table["model.decoder.project_in.weight"] = (hidden, embedded)
        table["model.decoder.project_out.weight"] = (embedded, hidden)
    if _has_final_norm(a):
        table |= _opt_norms(a, "model.decoder.final_layer_norm")
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
    layer = (with_biases(linear) if a.attention_bias else linear) | _opt_norms(
        a, "self_attn_layer_norm", "final_layer_norm"
    )
    return table | in_layers(a, layer, "model.decoder.layers")


def _opt_norms(a: Architecture, *names: str) -> TensorTable:
    if not a.extra.get("layer_norm_elementwise_affine", True):
        return {}
    return with_biases({f"{name}.weight": (a.hidden_size,) for name in names})


def build_opt(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    w = weights.under("model.decoder")
    has_projections = w.lists("project_in.weight")
    embedding = Embedding(
        w.embedding("embed_tokens"),
        positions=w.parameter("embed_positions.weight"),
        position_offset=OPT_POSITION_OFFSET,
        projection=w.replicated("project_in") if has_projections else None,
    )
    return Decoder(
        embedding=embedding,
        layers=tuple(_opt_layer(a, w.under(f"layers.{i}"), specs, i) for i in range(a.num_layers)),
        norm=w.layer_norm("final_layer_norm", a.norm_eps, a.hidden_size) if _has_final_norm(a) else None,
        projection=w.replicated("project_out") if has_projections else None,
        head=weights.head("lm_head", embedding.tokens),
    )


def _has_final_norm(a: Architecture) -> bool:
    return bool(a.extra.get("has_final_norm", True))


def _opt_layer(a: Architecture, w: Weights, specs: AttentionSpecs, index: int) -> DecoderLayer | LayerNormedAfter:
    layer = DecoderLayer if a.extra.get("do_layer_norm_before", True) else LayerNormedAfter
    return layer(
        attention_norm=w.layer_norm("self_attn_layer_norm", a.norm_eps, a.hidden_size),
        attention=w.attention(specs.layer(index), "self_attn.out_proj", *llama.QKV),
        mlp_norm=w.layer_norm("final_layer_norm", a.norm_eps, a.hidden_size),
        mlp=w.plain_mlp("fc1", "fc2", a.activation),
    )
