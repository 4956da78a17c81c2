"""Qwen 2 and Qwen 3: Llama with a few more tensors.

Qwen 2 has biases on the query, key and value projections only. Qwen 3 drops them and norms each head's
queries and keys instead.
"""

from __future__ import annotations

from octavo.models import llama
from octavo.models.architecture import Architecture
from octavo.models.weights import TensorTable

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def qwen2_tensors(a: Architecture) -> TensorTable:
    table = llama.tensors(a)
    for i in range(a.num_layers):
        table |= llama.biases(table, *(f"model.layers.{i}.{name}" for name in QKV))
    return table


def qwen3_tensors(a: Architecture) -> TensorTable:
    table = llama.tensors(a)
    for i in range(a.num_layers):
        table[f"model.layers.{i}.self_attn.q_norm.weight"] = (a.head_dim,)
        table[f"model.layers.{i}.self_attn.k_norm.weight"] = (a.head_dim,)
    return table
