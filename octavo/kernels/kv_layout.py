"""KVLayout: how a pool of equal blocks holds the keys and values of cache groups."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import Literal

import numpy as np

from octavo.kernels.arrays import FloatArray
from octavo.kernels.attention_layer import AttentionLayer

KVDType = Literal["float32", "bfloat16", "float16", "fp8", "int8"]


@dataclass(frozen=True, slots=True)
class KVElement:
    """How a KV cache of this type stores keys and values. scale_bytes: per token, for each head's key and value."""

    num_bytes: int
    scale_bytes: int = 0


KV_ELEMENTS: dict[KVDType, KVElement] = {
    "float32": KVElement(4),
    "bfloat16": KVElement(2),
    "float16": KVElement(2),
    "fp8": KVElement(1),
    "int8": KVElement(1),
}
#: types of codes, which `KVScales` multiply, and the largest code of each; greater numbers become it
LARGEST_CODE: dict[KVDType, float] = {"fp8": 448.0, "int8": 127.0}
_CALIBRATED_PART: dict[KVDType, float] = {"fp8": 0.5, "int8": 0.8}


@dataclass(frozen=True, slots=True)
class KVGroup:
    """The contents of a cache group's blocks: keys and values of num_layers layers of one shape. is_latent: keys alone,
    whose first numbers are the values (see `latent.py`)."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    is_latent: bool = False


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The KV pool's shape. One pool of `num_blocks` equal blocks serves all cache groups: a block holds
    `block_size` tokens of K and V for the layers of whichever group owns it, and has room for the largest group.

        pool: num_blocks x [ layer 0: K V scales | layer 1: K V scales | ... ]      one contiguous run of bytes a block
        of latents:        [ layer 0: K | layer 1: K | ... ]

    The backend chooses the order of elements inside a layer's K and V; copying a block copies its bytes.
    Block 0 is the null block: never written for a live token, never read.
    """

    num_blocks: int
    block_size: int
    groups: tuple[KVGroup, ...]
    dtype: KVDType

    @property
    def element_bytes(self) -> int:
        return KV_ELEMENTS[self.dtype].num_bytes

    def layer_bytes(self, group: KVGroup) -> int:
        element = KV_ELEMENTS[self.dtype]
        head_bytes = group.head_dim * element.num_bytes + element.scale_bytes
        return (1 if group.is_latent else 2) * group.num_kv_heads * self.block_size * head_bytes

    def layer_offset(self, layer: AttentionLayer) -> int:
        """Where in a block of its group a layer begins, in bytes."""
        return layer.index_in_group * self.layer_bytes(self.groups[layer.group])

    @property
    def block_bytes(self) -> int:
        """A multiple of every group's row (one token's key of one head): the pool is a matrix of any group's rows."""
        largest = max(group.num_layers * self.layer_bytes(group) for group in self.groups)
        row = lcm(*(group.head_dim * self.element_bytes for group in self.groups))
        return -(-largest // row) * row

    def check(self, layer: AttentionLayer) -> None:
        """Assert that a layer fits in its group's blocks."""
        group = self.groups[layer.group]
        found = KVGroup(group.num_layers, layer.num_kv_heads, layer.head_dim, layer.latent is not None)
        assert found == group, f"a layer of {layer.num_kv_heads} KV heads of {layer.head_dim} in blocks for {group}"
        assert layer.index_in_group < group.num_layers, "the layer has no place in the pool's blocks"


def calibrated_code(dtype: KVDType) -> float:
    """The code that calibrated scales give the largest number that was seen; later ones may be greater. Floats are as
    exact a factor of two lower."""
    return LARGEST_CODE[dtype] * _CALIBRATED_PART[dtype]


def kv_scales(layer: AttentionLayer) -> tuple[FloatArray, FloatArray]:
    """What a layer's codes are multiplied by, keys and values: [K] each, the caller's own."""
    given = layer.scales
    if given is None:
        return np.ones(layer.num_kv_heads, np.float32), np.ones(layer.num_kv_heads, np.float32)
    assert given.keys.shape == given.values.shape == (layer.num_kv_heads,), "a scale for each of the layer's KV heads"
    return given.keys.copy(), given.values.copy()
