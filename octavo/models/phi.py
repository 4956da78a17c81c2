"""Phi-3 and Phi-4: Llama whose checkpoints store Q, K, V as one tensor, and gate and up as another.

Partial rotation and the longrope scaling are values of the Architecture.
"""

from __future__ import annotations

from octavo.models import llama
from octavo.models.architecture import Architecture
from octavo.models.attention import AttentionSpecs
from octavo.models.decoder import Decoder
from octavo.models.weights import TensorTable, Weights


def tensors(a: Architecture) -> TensorTable:
    table = llama.outer_tensors(a)
    q, kv, hidden, inner = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.hidden_size, a.intermediate_size
    for i in range(a.num_layers):
        layer: TensorTable = {
            "input_layernorm.weight": (hidden,),
            "self_attn.qkv_proj.weight": (q + 2 * kv, hidden),
            "self_attn.o_proj.weight": (hidden, q),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_up_proj.weight": (2 * inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        table |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return table


def build(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
    return llama.build(a, weights, specs, qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",))
