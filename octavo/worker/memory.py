"""Chooses the number of KV blocks, and explains with numbers when there is too little memory."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.config import CacheConfig
from octavo.errors import OutOfMemoryError
from octavo.kernels.kv_layout import KVLayout


@dataclass(frozen=True, slots=True)
class KVBudget:
    """The pool's size and the longest sequence it can hold."""

    num_blocks: int  # the null block included
    max_model_len: int


def plan_kv_cache(
    config: CacheConfig,
    layout: KVLayout,
    max_num_seqs: int,
    max_model_len: int,
    is_len_asked: bool,
    free_bytes: int,
    is_rest: bool = False,
) -> KVBudget:
    """Choose the number of blocks, at most what max_num_seqs sequences could ever fill.

    A context the user asked for must fit, else OutOfMemoryError with the numbers; the model's own limit is
    lowered to what fits, which the start-up card shows. `layout.num_blocks` is ignored. free_bytes: what the
    device has left for KV blocks, which kv_cache_memory_bytes overrides. is_rest: they are all that there is, so that
    asking for more is no cure, and the plan of all parts names one (`worker/plan.py`).
    """
    num_groups = len(layout.groups)
    blocks_per_sequence = num_groups * -(-max_model_len // layout.block_size)
    if config.num_gpu_blocks_override is not None:
        num_blocks = config.num_gpu_blocks_override
    else:
        num_bytes = config.kv_cache_memory_bytes or free_bytes
        num_blocks = min(num_bytes // layout.block_bytes, max_num_seqs * blocks_per_sequence + 1)
    is_rest = is_rest and config.num_gpu_blocks_override is None and config.kv_cache_memory_bytes is None
    usable = num_blocks - 1
    if usable < num_groups:
        cure = "" if is_rest else f"; set {_size_of(config, layout, num_groups + 1)} or more"
        raise OutOfMemoryError(
            f"the KV cache holds {max(usable, 0)} blocks of {layout.block_bytes} bytes, needed are at least "
            f"{num_groups}{cure}"
        )
    if usable >= blocks_per_sequence:
        return KVBudget(num_blocks, max_model_len)
    fitting_len = usable // num_groups * layout.block_size
    if is_len_asked:
        larger = _size_of(config, layout, blocks_per_sequence + 1)
        cure = "" if is_rest else f"; set max_model_len to {fitting_len} or less, or {larger} or more"
        raise OutOfMemoryError(
            f"one sequence of max_model_len={max_model_len} tokens needs {blocks_per_sequence} KV blocks "
            f"({blocks_per_sequence * layout.block_bytes:,} bytes), the cache holds {usable}{cure}"
        )
    return KVBudget(num_blocks, fitting_len)


def _size_of(config: CacheConfig, layout: KVLayout, num_blocks: int) -> str:
    """The option that sets the cache's size, and its value for this number of blocks."""
    if config.num_gpu_blocks_override is not None:
        return f"num_gpu_blocks_override to {num_blocks}"
    return f"kv_cache_memory_bytes to {num_blocks * layout.block_bytes}"
