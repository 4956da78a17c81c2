"""OPT: learned positions, LayerNorm, relu, biases everywhere.

The position table has two rows before position 0's, left over from how the model was trained;
`num_position_embeddings` does not count them.

`Architecture.extra`: do_layer_norm_before (default True), word_embed_proj_dim (default hidden_size),
enable_bias and layer_norm_elementwise_affine (default True). OPT-350M alone differs in the first two and
Galactica in the last two; only the defaults are implemented.
"""

from __future__ import annotations

from octavo.errors import UnsupportedModelError
from octavo.layers.attention import SelfAttention
from octavo.layers.embedding import Embedding
from octavo.layers.mlp import PlainMLP
from octavo.models.architecture import Architecture
from octavo.models.attention import AttentionSpecs
from octavo.models.decoder import Decoder, DecoderLayer
from octavo.models.weights import TensorTable, Weights, with_biases

POSITION_OFFSET = 2


def tensors(a: Architecture) -> TensorTable:
    hidden, inner = a.hidden_size, a.intermediate_size
    table: TensorTable = {
        "model.decoder.embed_tokens.weight": (a.vocab_size, hidden),
        "model.decoder.embed_positions.weight": (a.num_position_embeddings + POSITION_OFFSET, hidden),
        "model.decoder.final_layer_norm.weight": (hidden,),
        "model.decoder.final_layer_norm.bias": (hidden,),
    }
    if not a.tie_word_embeddings:
        table["lm_head.weight"] = (a.vocab_size, hidden)
    layer: TensorTable = with_biases(
        {
            "self_attn_layer_norm.weight": (hidden,),
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.k_proj.weight": (hidden, hidden),
            "self_attn.v_proj.weight": (hidden, hidden),
            "self_attn.out_proj.weight": (hidden, hidden),
            "final_layer_norm.weight": (hidden,),
            "fc1.weight": (inner, hidden),
            "fc2.weight": (hidden, inner),
        }
    )
    for i in range(a.num_layers):
        table |= {f"model.decoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    return table


def build(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    _refuse_variants(a)
    embedding = Embedding(
        weights.tensor("model.decoder.embed_tokens.weight"),
        positions=weights.tensor("model.decoder.embed_positions.weight"),
        position_offset=POSITION_OFFSET,
    )
    return Decoder(
        embedding=embedding,
        layers=tuple(_layer(a, weights.under(f"model.decoder.layers.{i}"), specs, i) for i in range(a.num_layers)),
        norm=weights.layer_norm("model.decoder.final_layer_norm", a.norm_eps),
        head=weights.head("lm_head", embedding.tokens),
    )


def _layer(a: Architecture, weights: Weights, specs: AttentionSpecs, index: int) -> DecoderLayer:
    return DecoderLayer(
        attention_norm=weights.layer_norm("self_attn_layer_norm", a.norm_eps),
        attention=SelfAttention(
            qkv=weights.linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            out=weights.linear("self_attn.out_proj"),
            layer=specs.layer(index),
        ),
        mlp_norm=weights.layer_norm("final_layer_norm", a.norm_eps),
        mlp=PlainMLP(weights.linear("fc1"), weights.linear("fc2"), a.activation),
    )


def _refuse_variants(a: Architecture) -> None:
    implemented = {
        "do_layer_norm_before": True,
        "word_embed_proj_dim": a.hidden_size,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
    }
    for key, value in implemented.items():
        if a.extra.get(key, value) != value:
            raise UnsupportedModelError(f"this OPT model has {key}={a.extra[key]}; Octavo implements only {value}")
