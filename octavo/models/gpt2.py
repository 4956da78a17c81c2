"""GPT-2: learned positions, LayerNorm, biases everywhere, plain MLP.

Its projections are listed [out, in] like everyone's; a reader of Hugging Face's files, which store them
[in, out], transposes them.
"""

from __future__ import annotations

from octavo.layers.blocks import Embedding, PlainMLP
from octavo.models.architecture import Architecture
from octavo.models.attention import AttentionSpecs
from octavo.models.decoder import Decoder, DecoderLayer
from octavo.models.weights import TensorTable, Weights, with_biases


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
    for i in range(a.num_layers):
        table |= {f"transformer.h.{i}.{name}": shape for name, shape in layer.items()}
    return table


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
        mlp=PlainMLP(weights.column("mlp.c_fc"), weights.row("mlp.c_proj"), a.activation),
    )
