"""FlashAttention-4 for long prefill chunks, if the package `flash-attn-4` is installed and asked for.

It reads the same paged pool through the same block tables. For decoding sequences it is passed zero queries, so that
it leaves them to other kernels. A launch costs the host more time than a short step takes on the device, so only steps
with long chunks use it.

FlashAttention-4: the CuTe kernels for Hopper and Blackwell in the Dao-AILab's flash-attention repository.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import ClassVar

import torch

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.step import AttentionLaunch, DeviceStep
from octavo.kernels.kv_layout import LARGEST_CODE, KVDType, KVLayout
from octavo.kernels.triton.attention.memory import AttentionMemory, LayerPool
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform

MIN_CHUNK = 2048  # a step whose longest chunk is shorter is faster in Octavo's own kernels
HEAD_DIMS = (64, 128)
CAPABILITIES = (9, 10)


class FlashAttention:
    """Implements `octavo.kernels.attention.AttentionBackend`. Its construction imports the library, which takes
    seconds."""

    decodes_alone = False
    short_chunk = 1
    num_bytes = 0
    decodes_in_parts: ClassVar[bool] = False
    scales_projections: ClassVar[bool] = False
    longest_captured: ClassVar[int | None] = MIN_CHUNK - 1

    @staticmethod
    def why_not(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU) -> list[str]:
        major, minor = gpu.capability
        reasons = {
            "its package is not installed: pip install 'octavo[flash-attn]'": _is_missing(),
            f"it runs on compute capability 9 and 10, and this GPU has {major}.{minor}": major not in CAPABILITIES,
            "it computes in 16 bits, not in float32": dtype == "float32",
            f"it reads no KV blocks in {kv.dtype}": kv.dtype in LARGEST_CODE,
            f"it takes heads of 64 and 128, not of {layer.head_dim}": layer.head_dim not in HEAD_DIMS,
            "it takes no layers with a window": layer.window is not None,
            "it takes no capped scores": layer.softcap is not None,
            "it takes no sinks": layer.sinks is not None,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def __init__(self, memory: AttentionMemory) -> None:
        from flash_attn.cute.interface import _flash_attn_fwd

        self._forward: Callable[..., object] = _flash_attn_fwd
        self._pools = memory.pools
        self._num_queries = torch.empty(0, dtype=torch.int32)

    def plan(self, step: DeviceStep) -> None:
        """Count each sequence's new tokens, 0 for decoding sequences."""
        if step.max_chunk >= MIN_CHUNK:
            counts = step.query_start_loc.diff()
            self._num_queries = torch.where(counts > step.kind.decode_threshold, counts, 0)

    def decode(
        self, layer: AttentionLayer, transform: HeadTransform | None, otherwise: AttentionLaunch
    ) -> AttentionLaunch:
        return otherwise

    def prefill(self, layer: AttentionLayer, otherwise: AttentionLaunch) -> AttentionLaunch:
        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            if step.max_chunk >= MIN_CHUNK:
                self._attend(step, q, out, layer, self._pools[layer])
            else:
                otherwise(step, q, out)

        return launch

    def _attend(
        self, step: DeviceStep, q: torch.Tensor, out: torch.Tensor, layer: AttentionLayer, pool: LayerPool
    ) -> None:
        """The block table must have one row per sequence, as in a step from the host."""
        heads = (len(q), layer.num_heads, layer.head_dim)
        pages = (-(-len(pool.data) // pool.block_stride), pool.block_size, layer.num_kv_heads, layer.head_dim)
        strides = (pool.block_stride, layer.head_dim, pool.block_size * layer.head_dim, 1)
        start = pool.data.storage_offset()
        self._forward(
            q.view(heads),
            torch.as_strided(pool.data, pages, strides, start),
            torch.as_strided(pool.data, pages, strides, start + pool.value_offset),
            cu_seqlens_q=step.query_start_loc,
            seqused_q=self._num_queries,
            seqused_k=step.seq_lens,
            max_seqlen_q=step.max_chunk,
            max_seqlen_k=step.max_seq_len,
            page_table=step.block_tables[layer.group],
            softmax_scale=layer.scale,
            causal=True,
            out=out.view(heads),
        )


def _is_missing() -> bool:
    return importlib.util.find_spec("flash_attn") is None or importlib.util.find_spec("flash_attn.cute") is None
