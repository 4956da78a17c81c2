"""GGUF files for tests, written by the gguf package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

TINY_LLAMA: dict[str, Any] = {
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.block_count": 2,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10_000.0,
    "llama.rope.dimension_count": 8,
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>", "</s>", "é"],
    "tokenizer.ggml.bos_token_id": 3,
    "tokenizer.ggml.eos_token_id": 4,
}

Tensor = np.ndarray[Any, Any] | tuple[np.ndarray[Any, Any], str]


def family_of(kind: str) -> str:
    """Our family of a GGUF architecture."""
    named = {"gpt-oss": "gpt_oss", "deepseek2": "deepseek_v3"}
    return named.get(kind, kind.replace("moe", "_moe") if kind.startswith("qwen") else kind)


def in_the_table(kind: str, name: str) -> str:
    """The name under which the gguf package's table looks a canonical tensor up. Experts have no numbers there, and of
    Granite it knows the stacks' own names alone."""
    name = re.sub(r"experts\.\d+\.", "experts.", name)
    name = name.replace("e_score_correction_bias", "e_score_correction.bias").replace("sinks", "sinks.weight")
    if kind != "granitemoe":
        return name
    name = name.replace("block_sparse_moe.experts", "mlp.experts").replace("router.layer", "gate")
    return name.replace("shared_mlp", "mlp.shared_expert")


def write_gguf(
    path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], alignment: int = 32
) -> Path:
    """A tensor is an array, or an array and the type to quantise it to."""
    writer = gguf.GGUFWriter(path, architecture)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            kind = gguf.GGMLQuantizationType[tensor[1]]
            writer.add_tensor(name, gguf.quantize(tensor[0], kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
    if isinstance(value, np.generic):
        writer.add_key_value(key, value.item(), gguf.GGUFValueType[value.dtype.name.upper()])
    elif isinstance(value, (list, np.ndarray)):
        writer.add_array(key, list(value))
    else:
        kinds[type(value)](key, value)


def tiny_llama_tensors(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Names and shapes of TINY_LLAMA's tensors as GGUF has them."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (6, 32), "output_norm.weight": (32,)}
    for i in range(2):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (32,),
            f"blk.{i}.attn_q.weight": (32, 32),
            f"blk.{i}.attn_k.weight": (16, 32),
            f"blk.{i}.attn_v.weight": (16, 32),
            f"blk.{i}.attn_output.weight": (32, 32),
            f"blk.{i}.ffn_norm.weight": (32,),
            f"blk.{i}.ffn_gate.weight": (64, 32),
            f"blk.{i}.ffn_up.weight": (64, 32),
            f"blk.{i}.ffn_down.weight": (32, 64),
        }
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def mixed_llama(path: Path) -> Path:
    """TINY_LLAMA, whose matrices have several types, also those of one product."""
    kinds = {"attn_q": "Q4_0", "attn_k": "Q4_0", "attn_v": "Q8_0", "attn_output": "Q5_1", "ffn_down": "Q4_1"}
    tensors: dict[str, Tensor] = {}
    for name, values in tiny_llama_tensors().items():
        kind = kinds.get(name.split(".")[-2], "Q5_0")
        is_matrix = name.startswith("blk") and values.ndim == 2
        tensors[name] = (values * np.float32(0.2), kind) if is_matrix else values
    return write_gguf(path, "llama", TINY_LLAMA, tensors)
