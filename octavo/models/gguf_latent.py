"""Latent attention in a GGUF file, whose architecture is then `deepseek2`: DeepSeek V2 and V3, and Kimi K2.

A router that scores by the sigmoid is V3's, one by the softmax V2's. Of kv_b_proj there are two forms:

    attn_kv_b                 [heads * (key_dim + value_dim), rank]         as in Hugging Face's files
    attn_k_b, attn_v_b        [heads, rank, key_dim], [heads, value_dim, rank]

The second is what llama.cpp multiplies; key_length and value_length are then those of latents, with one KV head, and
each head's own end in `_mla`.
"""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import numpy as np

from octavo.errors import ModelLoadError
from octavo.kernels.reference.dequantize import convert, dequantize
from octavo.kernels.tensor import DType, HostTensor, StoredTensor, from_array
from octavo.models.architecture import Architecture, ExpertsConfig, LatentConfig, RopeConfig
from octavo.models.gguf_experts import MOST_EXPERTS, experts_config
from octavo.models.gguf_metadata import GGUFMetadata
from octavo.models.gguf_rope import gguf_rope
from octavo.shown import shown

_SIGMOID = 2  # of expert_gating_func


def deepseek2(config: GGUFMetadata) -> dict[str, Any]:
    own = "_mla" if config.has("attention.key_length_mla") else ""
    rotary = config.size("rope.dimension_count")
    sizes = LatentConfig(
        rank=config.size("attention.kv_lora_rank"),
        key_dim=config.size(f"attention.key_length{own}", smallest=rotary + 1) - rotary,
        rotary_dim=rotary,
        value_dim=config.size(f"attention.value_length{own}"),
        query_rank=config.optional_size("attention.q_lora_rank"),
    )
    width, (rope, sharpening) = sizes.rank + rotary, _rope(config)
    is_v3 = config.size("expert_gating_func", 1, largest=_SIGMOID) == _SIGMOID
    return {
        "family": "deepseek_v3" if is_v3 else "deepseek_v2",
        "num_kv_heads": 1,
        "head_dim": width,
        "latent": sizes,
        "attention_bias": "blk.0.attn_output.bias" in config.file.tensors,
        "attention_scale": (sizes.key_dim + rotary) ** -0.5 * sharpening**2,
        "rope": replace(rope, partial_rotary_factor=rotary / width),
        "experts": _experts(config, is_v3=is_v3),
    }


def _rope(config: GGUFMetadata) -> tuple[RopeConfig, float]:
    """And what scores are sharpened by, squared: with YaRN angles keep their length, and scores are scaled instead."""
    rope = gguf_rope(config)
    if rope.scaling is None or rope.scaling["rope_type"] != "yarn":
        return rope, 1.0
    steepness = config.number("rope.scaling.yarn_log_multiplier", 0.0, least=0)  # 0.1 * mscale_all_dim
    sharpening = 1.0 + steepness * log(max(rope.scaling["factor"], 1.0))
    return replace(rope, scaling=rope.scaling | {"attention_factor": 1.0}), sharpening


def _experts(config: GGUFMetadata, *, is_v3: bool) -> ExpertsConfig:
    """Groups of experts are not in older files: then all are one."""
    found = experts_config(
        config, "expert_feed_forward_length", renormalises=config.flag("expert_weights_norm", default=False)
    )
    count = found.routing.num_experts
    groups = config.size("expert_group_count", 1, largest=count)
    chosen_from = config.size("expert_group_used_count", groups, largest=groups)
    has_pairs = not is_v3 or chosen_from == groups or count // groups >= 2
    if count % groups or count // groups * chosen_from < found.routing.num_chosen or not has_pairs:
        allowed = f"numbers that divide expert_count, {count}, into groups with enough experts to choose from"
        raise config.wrong(f"{config.architecture}.expert_group_count", groups, allowed)
    routing = replace(
        found.routing,
        scoring="sigmoid" if is_v3 else "softmax",
        scale=config.number("expert_weights_scale", 0.0, least=0) or 1.0,
        num_groups=groups,
        top_groups=chosen_from,
        group_score="sum_of_two" if is_v3 else "largest",
    )
    shared = config.size("expert_shared_count", 0, largest=MOST_EXPERTS, smallest=0)
    num_dense = config.size("leading_dense_block_count", 0, largest=config.num_layers, smallest=0)
    return replace(
        found,
        routing=routing,
        shared_size=shared * found.intermediate_size,
        dense_layers=frozenset(range(num_dense)),
    )


def joined_latents(stored: dict[str, StoredTensor], a: Architecture, label: str) -> dict[str, StoredTensor]:
    """The same tensors with one kv_b_proj for each layer's two, made when it is read: dense, as they are."""
    if a.latent is None:
        return stored
    found = dict(stored)
    for prefix in (f"model.layers.{index}.self_attn." for index in range(a.num_layers)):
        keys, values = (found.pop(f"{prefix}{name}_b_proj.weight", None) for name in ("k", "v"))
        if keys is not None and values is not None and f"{prefix}kv_b_proj.weight" not in found:
            found[f"{prefix}kv_b_proj.weight"] = _joined(keys, values, a, f"{label}: {prefix}")
    return found


def _joined(keys: StoredTensor, values: StoredTensor, a: Architecture, where: str) -> StoredTensor:
    assert a.latent is not None, "the family has latents"
    c, heads = a.latent, a.num_heads
    for name, tensor, shape in (("k", keys, (heads, c.rank, c.key_dim)), ("v", values, (heads, c.value_dim, c.rank))):
        if tensor.shape != shape:
            raise ModelLoadError(
                f"{where}{name}_b_proj has shape {shown(list(tensor.shape))}, but the model's configuration asks for "
                f"{list(shape)}; convert the model again"
            )
    dtype: DType = keys.dtype if keys.dtype == values.dtype and keys.read().is_dense else "F32"

    def read() -> HostTensor:
        parts = dequantize(keys.read()).swapaxes(1, 2), dequantize(values.read())
        joined = np.concatenate(parts, axis=1)
        return convert(from_array(joined.reshape(-1, c.rank)), dtype)

    return StoredTensor(dtype, (heads * (c.key_dim + c.value_dim), c.rank), read, label=f"{where}kv_b_proj.weight")
