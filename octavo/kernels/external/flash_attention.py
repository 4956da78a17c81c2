"""FlashAttention-4 for long prefill chunks, where the package `flash-attn-4` is installed and asked for.

It reads the same paged pool through the same block tables; the sequences with one new token are left to
`decode_attention.py`, by telling it that they have no queries. Its launch costs the host more than its shorter
steps cost the device, so only steps with long chunks go there.

FlashAttention-4: the Dao-AILab's flash-attention repository, its CuTe kernels for Hopper and Blackwell.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from octavo.kernels.ops import AttentionLayer
from octavo.kernels.triton.attention.kv_pool import LayerPool

MIN_CHUNK = 2048  # a step whose longest chunk is shorter is faster in `prefill_attention.py`
HEAD_DIMS = (64, 128)
CAPABILITIES = (9, 10)

Forward = Callable[..., object]


def why_not(capability: tuple[int, int]) -> str | None:
    """None if it can run here, else the reason and the cure."""
    if importlib.util.find_spec("flash_attn") is None or importlib.util.find_spec("flash_attn.cute") is None:
        return "attention_backend is flash_attn_4, but the package is not installed: pip install flash-attn-4"
    if capability[0] not in CAPABILITIES:
        return (
            f"attention_backend is flash_attn_4, which runs on compute capability 9 and 10; this GPU has "
            f"{capability[0]}.{capability[1]}: set attention_backend='triton'"
        )
    return None


class FlashAttention:
    """The library's forward pass, imported when this is made, which takes seconds."""

    def __init__(self) -> None:
        from flash_attn.cute.interface import _flash_attn_fwd

        self._forward: Forward = _flash_attn_fwd

    @staticmethod
    def takes(layer: AttentionLayer, dtype: torch.dtype) -> bool:
        """Whether a layer is one that it computes here. Others stay with Triton."""
        return layer.window is None and layer.softcap is None and layer.head_dim in HEAD_DIMS and dtype != torch.float32

    def prefill(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        layer: AttentionLayer,
        pool: LayerPool,
        *,
        query_start_loc: torch.Tensor,
        num_queries: torch.Tensor,
        seq_lens: torch.Tensor,
        block_table: torch.Tensor,
        max_chunk: int,
        max_seq_len: int,
    ) -> None:
        """As `prefill_attention`: write the rows of `out` [T, Q * D] of the sequences with queries. num_queries [S]:
        how many new tokens a sequence has, 0 for those to leave alone. block_table [S, blocks], a row a sequence."""
        heads = (len(q), layer.num_heads, layer.head_dim)
        pages = (-(-len(pool.data) // pool.block_stride), pool.block_size, layer.num_kv_heads, layer.head_dim)
        strides = (pool.block_stride, layer.head_dim, pool.block_size * layer.head_dim, 1)
        start = pool.data.storage_offset()
        self._forward(
            q.view(heads),
            torch.as_strided(pool.data, pages, strides, start),
            torch.as_strided(pool.data, pages, strides, start + pool.value_offset),
            cu_seqlens_q=query_start_loc,
            seqused_q=num_queries,
            seqused_k=seq_lens,
            max_seqlen_q=max_chunk,
            max_seqlen_k=max_seq_len,
            page_table=block_table,
            softmax_scale=layer.scale,
            causal=True,
            out=out.view(heads),
        )
