"""Where a key or a value lies in the pool, for the Triton kernels.

The pool of `KVLayout` seen as elements of the cache dtype:

    block b = [ layer 0 | layer 1 | ... ]         layer = [ K | V ]         K, V = [kv head, token in block, D]

so that one head's keys of one block are one run of block_size * D elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.kv_layout import KVLayout
from octavo.kernels.ops import AttentionLayer

TORCH_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


BOX_TOKENS = 16  # of a block, read at once by the tensor copy engine: the fewest that the matrix units take


def padded_dim(head_dim: int) -> int:
    """The width of a tile that holds a head: a power of two, and no less than the matrix units take."""
    return max(16, 1 << (head_dim - 1).bit_length())


@dataclass(frozen=True, slots=True, eq=False)
class LayerPool:
    """One layer's view of the pool. Strides and offsets count elements."""

    data: torch.Tensor  # 1-D, starts at the layer's K in block 0
    block_stride: int
    value_offset: int  # from a key to its value
    block_size: int
    rows: TensorDescriptor  # the whole pool as [rows, D], read in boxes of BOX_TOKENS
    layer_row: int  # the layer's first row in block 0

    @classmethod
    def of(cls, pool: torch.Tensor, layout: KVLayout, layer: AttentionLayer) -> LayerPool:
        """`pool`: the whole one, 1-D uint8."""
        elements = pool.view(TORCH_DTYPE[layout.dtype])
        size, dim = elements.element_size(), layer.head_dim
        start = layout.layer_offset(layer) // size
        rows = TensorDescriptor(elements, [elements.numel() // dim, dim], [dim, 1], [BOX_TOKENS, padded_dim(dim)])
        return cls(
            elements[start:], layout.block_bytes // size, layer.num_kv_heads * layout.block_size * dim,
            layout.block_size, rows, start // dim,
        )  # fmt: skip
