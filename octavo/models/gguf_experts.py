"""Experts in a GGUF file: their numbers in its metadata, families that have them, and each layer's stacks taken apart.

GGUF has a matrix of all experts as one tensor [experts, out, in], and their biases as [experts, out]; the canonical
form is a tensor for each expert, which here is a view of the stack. How the router chooses is not in the file but in
llama.cpp's code, for each architecture.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from octavo.errors import ModelLoadError
from octavo.kernels.mixture import Gate, Routing
from octavo.kernels.tensor import HostTensor, StoredTensor, at_hand
from octavo.models.architecture import ExpertsConfig
from octavo.models.gguf_metadata import GGUFMetadata
from octavo.models.gguf_rope import gguf_rope

#: stands for an expert's number in the canonical name of a stack
EVERY_EXPERT = "*"
MOST_EXPERTS = 1 << 12
_NAMES_OF_STACK = re.compile(r"(.+\.\*)\.([^.]+)\.(weight|bias)")


def experts_config(
    config: GGUFMetadata, inner_key: str, *, renormalises: bool, has_shared: bool = False
) -> ExpertsConfig:
    """inner_key: the key with an expert's inner size."""
    count, chosen = config.size("expert_count"), config.size("expert_used_count")
    for key, value, most in (("expert_count", count, MOST_EXPERTS), ("expert_used_count", chosen, count)):
        if value > most:
            raise ModelLoadError(f"{config.file.path}: {config.architecture}.{key} is {value}; allowed: 1 to {most}")
    shared = config.size("expert_shared_feed_forward_length", config.size("feed_forward_length")) if has_shared else 0
    return ExpertsConfig(
        routing=Routing(num_experts=count, num_chosen=chosen, renormalises=renormalises),
        intermediate_size=config.size(inner_key),
        shared_size=shared,
        has_shared_gate=has_shared,
    )


def qwen2_moe(config: GGUFMetadata) -> dict[str, Any]:
    experts = experts_config(config, "expert_feed_forward_length", renormalises=False, has_shared=True)
    has_biases = "blk.0.attn_q.bias" in config.file.tensors
    return {"family": "qwen2_moe", "rope": gguf_rope(config), "experts": experts, "extra": {"qkv_bias": has_biases}}


def qwen3_moe(config: GGUFMetadata) -> dict[str, Any]:
    experts = experts_config(config, "expert_feed_forward_length", renormalises=True)
    return {"family": "qwen3_moe", "rope": gguf_rope(config), "experts": experts}


def olmoe(config: GGUFMetadata) -> dict[str, Any]:
    experts = experts_config(config, "feed_forward_length", renormalises=False)
    return {"rope": gguf_rope(config), "experts": experts}


def gpt_oss(config: GGUFMetadata) -> dict[str, Any]:
    """Every other layer has a window, the first one included. What the gate is limited by is not in the file."""
    rope, window = gguf_rope(config), config.size("attention.sliding_window", 128)
    experts = experts_config(config, "expert_feed_forward_length", renormalises=True)
    return {
        "family": "gpt_oss",
        "attention_bias": True,
        "rope": replace(rope, scaling=rope.scaling and rope.scaling | {"truncate": False}),
        "windows": tuple(window if layer % 2 == 0 else None for layer in range(config.num_layers)),
        "experts": replace(experts, gate=Gate("clamped")),
    }


def experts_apart(name: str, tensor: HostTensor) -> dict[str, StoredTensor]:
    """A tensor under its canonical name, or a stack's under one for each expert. Newer files stack gate and up."""
    if name.endswith("shared_expert_gate.weight") and len(tensor.shape) == 1:
        tensor = HostTensor(tensor.dtype, (1, *tensor.shape), tensor.data)
    match = _NAMES_OF_STACK.fullmatch(name)
    if match is None or len(tensor.shape) != (2 if name.endswith(".bias") else 3):
        return {name: at_hand(tensor)}
    where, parts, kind = match.groups()
    names = [f"{where}.{part}.{kind}" for part in parts.split("+")]
    count, rows, *cols = tensor.shape
    if rows % len(names):
        raise ModelLoadError(f"tensor {name!r} has {rows} rows, allowed are even numbers; convert the model again")
    shape = (rows // len(names), *cols)
    matrices = tensor.data.reshape(count, len(names), -1)
    return {
        each.replace(EVERY_EXPERT, str(expert)): at_hand(HostTensor(tensor.dtype, shape, matrices[expert, which]))
        for expert in range(count)
        for which, each in enumerate(names)
    }
