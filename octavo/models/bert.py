"""Encoders: BERT, RoBERTa, XLM-R and MPNet.

Learned positions, a table for each of a pair's texts, LayerNorm after each half of a layer.

Every token sees all others of its text, so a step has whole texts, and nothing is kept from one step to the next: keys
and values of all layers share the same blocks.

RoBERTa and XLM-R have other names, and rows of the position table before position 0's, which
`num_position_embeddings` does not count: `extra["position_offset"]`, by default 0. `extra["type_vocab_size"]` is the
number of rows of the pair's table.

MPNet has no such table. All its layers share a learned bias of the scores, by how far apart two tokens are: distances
up to an eighth of the buckets have one each, larger ones share buckets that widen up to a distance of 128.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from octavo.kernels.arrays import IntArray
from octavo.kernels.attention_layer import AttentionLayer, ScoreBias
from octavo.kernels.parameters import Shard
from octavo.layers.blocks import Embedding
from octavo.models.architecture import Architecture
from octavo.models.decoder import AttentionSpecs, Decoder, LayerNormedAfter
from octavo.models.weights import TensorTable, Weights, in_layers, with_biases

QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
OUT, NORM = "attention.output.dense", "attention.output.LayerNorm"
#: MPNet's names -> BERT's
_MPNET = {
    **{f"attention.attn.{name}": own for name, own in zip("qkvo", (*QKV, OUT), strict=True)},
    "attention.LayerNorm": NORM,
}
_FARTHEST = 128


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


def mpnet_tensors(a: Architecture) -> TensorTable:
    table: TensorTable = {"mpnet.encoder.relative_attention_bias.weight": (a.extra["num_buckets"], a.num_heads)}
    types = "mpnet.embeddings.token_type_embeddings.weight"
    for name, shape in tensors(replace(a, extra={**a.extra, "type_vocab_size": 1})).items():
        start, ending = name.rpartition(".")[::2]
        new = next((f"{start.removesuffix(own)}{name}" for name, own in _MPNET.items() if start.endswith(own)), start)
        if name != types:
            table[f"{new}.{ending}"] = shape
    return table


def _position_offset(a: Architecture) -> int:
    return int(a.extra.get("position_offset", 0))


def build(
    a: Architecture, weights: Weights, specs: AttentionSpecs, names: tuple[str, ...] = (*QKV, OUT, NORM)
) -> Decoder:
    """names: as in `_layer`."""
    w = weights.under(f"{a.family}.embeddings")
    embedding = Embedding(
        w.embedding("word_embeddings"),
        positions=w.parameter("position_embeddings.weight"),
        position_offset=_position_offset(a),
        types=w.optional("token_type_embeddings.weight"),
        norm=w.layer_norm("LayerNorm", a.norm_eps, a.hidden_size),
    )
    layers = tuple(
        _layer(a, weights.under(f"{a.family}.encoder.layer.{i}"), specs.layer(i), names) for i in range(a.num_layers)
    )
    return Decoder(embedding=embedding, layers=layers, norm=None, head=None)


def build_mpnet(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    table = weights.parameter("mpnet.encoder.relative_attention_bias.weight", Shard.rows(a.num_heads))
    bias = ScoreBias(table, _buckets(a.extra["num_buckets"]))
    return build(a, weights, specs.with_bias(bias), tuple(_MPNET))


def _buckets(num_buckets: int) -> IntArray:
    """The bucket of each distance from -128 to 128, of a key from its query; keys before it have the first half."""
    half = num_buckets // 2
    exact = half // 2
    far = np.arange(_FARTHEST + 1, dtype=np.float32)
    steps = np.log(np.maximum(far, 1) / np.float32(exact)) / np.float32(np.log(_FARTHEST / exact)) * (half - exact)
    one_side = np.where(far < exact, far, np.minimum(exact + steps.astype(np.int32), half - 1)).astype(np.int32)
    return np.concatenate([one_side[:0:-1], one_side[:1], one_side[1:] + half])


def _layer(a: Architecture, w: Weights, layer: AttentionLayer, names: tuple[str, ...]) -> LayerNormedAfter:
    """names: of the projections, of what follows attention, and of the norm behind that."""
    *qkv, out, norm = names
    return LayerNormedAfter(
        attention=w.attention(layer, out, *qkv),
        attention_norm=w.layer_norm(norm, a.norm_eps, a.hidden_size),
        mlp=w.plain_mlp("intermediate.dense", "output.dense", a.activation),
        mlp_norm=w.layer_norm("output.LayerNorm", a.norm_eps, a.hidden_size),
    )
