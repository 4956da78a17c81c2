"""Qwen 2 and Qwen 3: Llama with a few more tensors.

Qwen 2 has biases on the query, key and value projections only. Qwen 3 drops them and norms each head's
queries and keys instead.
"""

from __future__ import annotations

from octavo.models import llama
from octavo.models.architecture import Architecture
from octavo.models.weights import TensorTable, with_biases


def qwen2_tensors(a: Architecture) -> TensorTable:
    names = [f"model.layers.{i}.{projection}" for i in range(a.num_layers) for projection in llama.QKV]
    return with_biases(llama.tensors(a), *names)


def qwen3_tensors(a: Architecture) -> TensorTable:
    return llama.tensors(a) | llama.head_norms(a)
