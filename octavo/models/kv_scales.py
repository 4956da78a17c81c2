"""The scales that a checkpoint has for an 8-bit KV cache.

For each layer one number for keys and one for values, or one for each KV head:

    model.layers.3.self_attn.k_scale          also under `attn.`, `k_proj.` and `v_proj.`, by the program that wrote it
    model.layers.3.self_attn.k_proj.output_scale

Of latents k_scale alone counts, as everything that is stored is a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.arrays import FloatArray
from octavo.kernels.attention_layer import KVScales
from octavo.kernels.parameters import Shard
from octavo.kernels.tensor import StoredTensor
from octavo.models.checkpoint import Checkpoint
from octavo.quantization.scaled import FLOATS, floats
from octavo.shown import shown

_NAME = re.compile(
    r"\.(\d{1,6})\.(?:self_attn|attn)\.(?:attn\.)?(?:([kv])_proj\.output_scale|(?:[kv]_proj\.)?([kv])_scale)$"
)


def read_kv_scales(checkpoint: Checkpoint, rank: int = 0, num_ranks: int = 1) -> dict[int, KVScales]:
    """By layer; a layer without any is absent. Of a rank's KV heads."""
    a = checkpoint.architecture
    found: dict[tuple[int, str], StoredTensor] = {}
    for name, tensor in checkpoint.stored.items():
        if (match := _NAME.search(name)) and int(match[1]) < a.num_layers:
            which = int(match[1]), match[2] or match[3]
            if which in found:
                raise ModelLoadError(f"{found[which].label} and {name!r} are both scales of the same KV heads")
            found[which] = replace(tensor, label=f"{checkpoint.label}: tensor {name!r}")
            checkpoint.taken.add(name)
    layers = sorted({layer for layer, _ in found})
    both = "kv" if a.latent is None else "kk"
    whole = {layer: [_numbers(found, layer, which, a.num_kv_heads) for which in both] for layer in layers}
    _, parts = Shard.heads(a.num_heads, a.num_kv_heads).slices((a.num_kv_heads,), rank, num_ranks)
    return {layer: KVScales(*(each[parts[0]] for each in scales)) for layer, scales in whole.items()}


def _numbers(found: Mapping[tuple[int, str], StoredTensor], layer: int, which: str, num_heads: int) -> FloatArray:
    tensor = found.get((layer, which))
    if tensor is None:
        (other,) = (found[layer, each] for each in "kv" if (layer, each) in found)
        raise ModelLoadError(f"{other.label} has no {which}_scale beside it; download the model again")
    if tensor.dtype not in FLOATS:
        raise UnsupportedModelError(f"{tensor.label} has dtype {tensor.dtype}; Octavo reads {', '.join(FLOATS)}")
    if (size := int(np.prod(tensor.shape, dtype=object))) not in (1, num_heads):
        raise ModelLoadError(
            f"{tensor.label} has shape {shown(list(tensor.shape))}, allowed is 1 number, or {num_heads}: one for each "
            "KV head"
        )
    numbers = floats(tensor).reshape(size)
    if not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ModelLoadError(f"{tensor.label} has a number that is not above 0 and finite; download the model again")
    return np.array(np.broadcast_to(numbers, num_heads), np.float32)
