"""Encoders: BERT, RoBERTa and XLM-R.

Learned positions, a table for each of a pair's texts, LayerNorm after each half of a layer.

Every token sees all others of its text, so a step has whole texts, and nothing is kept from one step to the next: keys
and values of all layers share the same blocks.

RoBERTa and XLM-R have other names, and rows of the position table before position 0's, which
`num_position_embeddings` does not count: `extra["position_offset"]`, by default 0. `extra["type_vocab_size"]` is the
number of rows of the pair's table.
"""

from __future__ import annotations

from octavo.layers.blocks import Embedding
from octavo.models.architecture import Architecture
from octavo.models.decoder import AttentionSpecs, Decoder, LayerNormedAfter
from octavo.models.weights import TensorTable, Weights, in_layers, with_biases

QKV = ("attention.self.query", "attention.self.key", "attention.self.value")


def tensors(a: Architecture) -> TensorTable:
    hidden, inner = a.hidden_size, a.intermediate_size
    outer = f"{a.family}.embeddings"
    table: TensorTable = {
        f"{outer}.word_embeddings.weight": (a.vocab_size, hidden),
        f"{outer}.position_embeddings.weight": (a.num_position_embeddings + _position_offset(a), hidden),
        f"{outer}.token_type_embeddings.weight": (a.extra["type_vocab_size"], hidden),
        f"{outer}.LayerNorm.weight": (hidden,),
        f"{outer}.LayerNorm.bias": (hidden,),
    }
    layer: TensorTable = with_biases(
        {
            **dict.fromkeys((f"{name}.weight" for name in QKV), (hidden, hidden)),
            "attention.output.dense.weight": (hidden, hidden),
            "attention.output.LayerNorm.weight": (hidden,),
            "intermediate.dense.weight": (inner, hidden),
            "output.dense.weight": (hidden, inner),
            "output.LayerNorm.weight": (hidden,),
        }
    )
    return table | in_layers(a, layer, f"{a.family}.encoder.layer")


def _position_offset(a: Architecture) -> int:
    return int(a.extra.get("position_offset", 0))


def build(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    w = weights.under(f"{a.family}.embeddings")
    embedding = Embedding(
        w.embedding("word_embeddings"),
        positions=w.parameter("position_embeddings.weight"),
        position_offset=_position_offset(a),
        types=w.parameter("token_type_embeddings.weight"),
        norm=w.layer_norm("LayerNorm", a.norm_eps, a.hidden_size),
    )
    layers = tuple(_layer(a, weights.under(f"{a.family}.encoder.layer.{i}"), specs, i) for i in range(a.num_layers))
    return Decoder(embedding=embedding, layers=layers, norm=None, head=None)


def _layer(a: Architecture, w: Weights, specs: AttentionSpecs, index: int) -> LayerNormedAfter:
    return LayerNormedAfter(
        attention=w.attention(specs.layer(index), "attention.output.dense", *QKV),
        attention_norm=w.layer_norm("attention.output.LayerNorm", a.norm_eps, a.hidden_size),
        mlp=w.plain_mlp("intermediate.dense", "output.dense", a.activation),
        mlp_norm=w.layer_norm("output.LayerNorm", a.norm_eps, a.hidden_size),
    )
