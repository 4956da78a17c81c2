"""The KV pool's memory on a CPU: one run of bytes, a block after a block, touched only when written."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.errors import OutOfMemoryError
from octavo.kernels.ops import KVLayout

ALIGNMENT = 64  # a cache line, and the widest vector


def allocate_pool(layout: KVLayout) -> NDArray[np.uint8]:
    """[num_blocks * block_bytes] uint8, aligned. The system hands out pages on first write."""
    num_bytes = layout.num_blocks * layout.block_bytes
    try:
        raw = np.empty(num_bytes + ALIGNMENT, np.uint8)
    except MemoryError:
        raise OutOfMemoryError(
            f"the KV cache of {layout.num_blocks} blocks needs {num_bytes:,} bytes, which this machine refused; "
            f"set kv_cache_memory_bytes lower"
        ) from None
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + num_bytes]
