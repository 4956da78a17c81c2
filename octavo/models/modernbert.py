"""ModernBERT: an encoder with rotary positions, gated MLPs and norms before each half of a layer.

Most layers see only their neighbours, `windows` to each side, and have a rope of their own. The first layer's attention
reads the embedding's norm. Biases are there if the configuration asks for them: `extra["norm_bias"]`, of all norms.
"""

from __future__ import annotations

from octavo.layers.blocks import Embedding, GivenAsIs
from octavo.models.architecture import Architecture
from octavo.models.decoder import AttentionSpecs, Decoder, DecoderLayer
from octavo.models.weights import TensorTable, Weights, in_layers, with_biases


def tensors(a: Architecture) -> TensorTable:
    hidden, inner = a.hidden_size, a.intermediate_size
    norms: TensorTable = {"model.embeddings.norm.weight": (hidden,), "model.final_norm.weight": (hidden,)}
    norms |= in_layers(a, {"attn_norm.weight": (hidden,), "mlp_norm.weight": (hidden,)})
    del norms["model.layers.0.attn_norm.weight"]
    attention: TensorTable = {"attn.Wqkv.weight": (3 * hidden, hidden), "attn.Wo.weight": (hidden, hidden)}
    mlp: TensorTable = {"mlp.Wi.weight": (2 * inner, hidden), "mlp.Wo.weight": (hidden, inner)}
    return {
        "model.embeddings.tok_embeddings.weight": (a.vocab_size, hidden),
        **(with_biases(norms) if a.extra["norm_bias"] else norms),
        **in_layers(a, with_biases(attention) if a.attention_bias else attention),
        **in_layers(a, with_biases(mlp) if a.mlp_bias else mlp),
    }


def build(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    w = weights.under("model.embeddings")
    embedding = Embedding(w.embedding("tok_embeddings"), norm=w.layer_norm("norm", a.norm_eps, a.hidden_size))
    return Decoder(
        embedding=embedding,
        layers=tuple(_layer(a, weights.under(f"model.layers.{i}"), specs, i) for i in range(a.num_layers)),
        norm=weights.layer_norm("model.final_norm", a.norm_eps, a.hidden_size),
        head=None,
    )


def _layer(a: Architecture, w: Weights, specs: AttentionSpecs, index: int) -> DecoderLayer:
    return DecoderLayer(
        attention_norm=w.layer_norm("attn_norm", a.norm_eps, a.hidden_size) if index else GivenAsIs(),
        attention=w.attention(specs.layer(index), "attn.Wo", "attn.Wqkv"),
        mlp_norm=w.layer_norm("mlp_norm", a.norm_eps, a.hidden_size),
        mlp=w.gated_mlp(("mlp.Wi",), "mlp.Wo", a.activation),
    )
