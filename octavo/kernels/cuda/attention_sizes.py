"""The sizes of what attention keeps on a GPU beside KV blocks: plans and partial results. `sizes.py` has the others."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.sizes import Shapes

LATENT_ROWS = 64  # rows that a program of attention over latents has, at most
LATENT_SHARES = 128  # parts of a context there
MAX_PARTITIONS = 32  # parts of a sequence in decode attention by Triton's kernels
FIXED_PART_ROWS = 4096  # rows of partial results, for each kv head, in a deterministic engine's attention
FIXED_LATENT_ROWS = 16384  # the same over latents, of all heads
PREFILL_TILE = 128  # queries of a chunk that one tile of attention has


def attention_plan(max_num_seqs: int, max_num_tokens: int) -> Shapes:
    return {
        "totals": (2,),
        "items": (max_num_seqs * MAX_PARTITIONS, 8),
        "item_ranges": (max_num_seqs, 2),
        "tiles": (max_num_tokens // PREFILL_TILE + max_num_seqs, 8),
        "slots": (max_num_tokens,),
    }


def decode_workspace(max_num_seqs: int, layers: Sequence[AttentionLayer]) -> Shapes:
    max_items = max_num_seqs * MAX_PARTITIONS
    heads = max((layer.num_heads for layer in layers), default=0)
    width = max((layer.num_heads * layer.head_dim for layer in layers), default=0)
    return {"values": (max_items * width,), "max_sum": (max_items * heads * 2,), "counter": (1,)}


def fixed_attention_workspace(layers: Sequence[AttentionLayer]) -> Shapes:
    rows = max(map(fixed_part_rows, layers), default=0)
    elements = max((fixed_part_rows(layer) * layer.value_dim for layer in layers), default=0)
    return {"values": (elements,), "max_sum": (rows * 2,)}


def fixed_part_rows(layer: AttentionLayer) -> int:
    return FIXED_LATENT_ROWS if layer.latent is not None else FIXED_PART_ROWS * layer.num_kv_heads


def latent_programs(gpu: GPU) -> int:
    """Programs of attention over latents for which contexts are cut."""
    return 2 * gpu.num_multiprocessors


def latent_workspace(layers: Sequence[AttentionLayer], gpu: GPU) -> Shapes:
    """Partial results of all programs that may have one."""
    rank = max((layer.value_dim for layer in layers if layer.latent is not None), default=0)
    rows = latent_programs(gpu) * LATENT_ROWS if rank else 0
    return {"values": (rows * rank,), "max_sum": (rows * 2,)}
