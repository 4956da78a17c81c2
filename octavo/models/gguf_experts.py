"""Experts in a GGUF file: their numbers in its metadata, and each layer's stacks taken apart.

GGUF has a matrix of all experts as one tensor [experts, out, in]; the canonical form is a tensor for each expert, which
here is a view of the stack. How the router chooses is not in the file but in llama.cpp's code, for each architecture.
"""

from __future__ import annotations

from octavo.errors import ModelLoadError
from octavo.kernels.mixture import Routing
from octavo.kernels.tensor import HostTensor, StoredTensor, at_hand
from octavo.models.architecture import ExpertsConfig
from octavo.models.gguf_metadata import GGUFMetadata

#: stands for an expert's number in the canonical name of a stack
EVERY_EXPERT = "*"
_MOST_EXPERTS = 1 << 12


def experts_config(
    config: GGUFMetadata, inner_key: str, *, renormalises: bool, has_shared: bool = False
) -> ExpertsConfig:
    """inner_key: the key with an expert's inner size."""
    count, chosen = config.size("expert_count"), config.size("expert_used_count")
    for key, value, most in (("expert_count", count, _MOST_EXPERTS), ("expert_used_count", chosen, count)):
        if value > most:
            raise ModelLoadError(f"{config.file.path}: {config.architecture}.{key} is {value}; allowed: 1 to {most}")
    shared = config.size("expert_shared_feed_forward_length", config.size("feed_forward_length")) if has_shared else 0
    return ExpertsConfig(
        routing=Routing(num_experts=count, num_chosen=chosen, renormalises=renormalises),
        intermediate_size=config.size(inner_key),
        shared_size=shared,
        has_shared_gate=has_shared,
    )


def experts_apart(name: str, tensor: HostTensor) -> dict[str, StoredTensor]:
    """A tensor under its canonical name, or a stack's under one for each expert."""
    if name.endswith("shared_expert_gate.weight") and len(tensor.shape) == 1:
        tensor = HostTensor(tensor.dtype, (1, *tensor.shape), tensor.data)
    if EVERY_EXPERT not in name or len(tensor.shape) != 3:
        return {name: at_hand(tensor)}
    count, *shape = tensor.shape
    experts = tensor.data.reshape(count, -1)
    return {
        name.replace(EVERY_EXPERT, str(expert)): at_hand(HostTensor(tensor.dtype, tuple(shape), experts[expert]))
        for expert in range(count)
    }
