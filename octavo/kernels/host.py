"""Shared by the devices that compute in the host's memory: default sizes, types, and the KV pool."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.config import DTypeOption, KVCacheDType
from octavo.errors import OutOfMemoryError
from octavo.kernels.device import DTypes, StepSizes
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.observe.machine import memory

#: at 512 tokens a step prefill runs at full speed, and decodes wait well under a second
HOST_SIZES = StepSizes(max_num_batched_tokens=512, max_num_seqs=256)
#: KV blocks have the type of dense weights, and float16 for block-quantised ones
_KV_DTYPE_OF_FILE: dict[str, KVDType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_MOST_KV_BYTES = 4 << 30
_KV_SHARE = 0.25  # of the memory that is free before the weights are loaded
_ALIGNMENT = 64  # a cache line, and the widest vector


def host_dtypes(asked: DTypeOption, kv_asked: KVCacheDType, stored: str) -> DTypes:
    """Activations are float32. KV blocks take the requested type, else that of the weights."""
    if kv_asked != "auto":
        return DTypes("float32", kv_asked)
    return DTypes("float32", asked if asked != "auto" else _KV_DTYPE_OF_FILE.get(stored, "float16"))


def host_free_bytes(utilization: float) -> int:
    """Default size of the KV pool; it leaves memory for the weights and for other programs."""
    _total, available = memory()
    return min(_MOST_KV_BYTES, int(available * _KV_SHARE))


def allocate_pool(layout: KVLayout) -> NDArray[np.uint8]:
    """[num_blocks * block_bytes] uint8, aligned. The system hands out pages on first write."""
    num_bytes = layout.num_blocks * layout.block_bytes
    try:
        raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    except MemoryError:
        raise OutOfMemoryError(
            f"the KV cache of {layout.num_blocks} blocks needs {num_bytes:,} bytes, which this machine refused; "
            f"set kv_cache_memory_bytes lower"
        ) from None
    offset = -raw.ctypes.data % _ALIGNMENT
    return raw[offset : offset + num_bytes]
