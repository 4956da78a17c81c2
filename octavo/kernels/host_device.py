"""HostDevice: what devices that compute in the host's memory have alike: sizes of steps, types, and the KV pool."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from octavo.config import DTypeOption, KVCacheDType
from octavo.errors import OutOfMemoryError
from octavo.kernels.device import DTypes, StepLimits, StepSizes, row_shapes
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.ledger import Entry, Ledger
from octavo.observe.machine import memory

#: KV blocks have the type of dense weights, and float16 for block-quantised ones
_KV_DTYPE_OF_FILE: dict[str, KVDType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_MOST_KV_BYTES = 4 << 30
_KV_SHARE = 0.25  # of the memory that is free before the weights are loaded
_ALIGNMENT = 64  # a cache line, and the widest vector


class HostDevice:
    """A part of `octavo.kernels.device.Device`."""

    is_asynchronous = draws_weights = sizes_cache_last = False
    collective_device = None
    kind = ""

    def default_sizes(self) -> StepSizes:
        """At 512 tokens per step prefill runs at full speed, and decodes wait well under a second."""
        return StepSizes(max_num_batched_tokens=512, max_num_seqs=256)

    def dtypes(self, asked: DTypeOption, kv_asked: KVCacheDType, stored: str) -> DTypes:
        """Activations are float32. KV blocks take the requested type, else that of the weights."""
        if kv_asked != "auto":
            return DTypes("float32", kv_asked)
        return DTypes("float32", asked if asked != "auto" else _KV_DTYPE_OF_FILE.get(stored, "float16"))

    def free_bytes(self, ledger: Ledger, utilization: float) -> int:
        """Default size of the KV pool; it leaves memory for the weights and for other programs."""
        return self.planned_bytes(ledger, utilization, None)

    def planned_bytes(self, ledger: Ledger, utilization: float, available: int | None) -> int:
        return min(_MOST_KV_BYTES, int((available or memory()[1]) * _KV_SHARE))

    def label(self, dtype: KVDType) -> None:
        return None

    def compile_ahead(self, settings: object) -> None:
        return None

    def used_bytes(self) -> None:
        return None

    def move_bytes(self, kv: KVLayout) -> int:
        return 0


def host_rows(kv: KVLayout, limits: StepLimits) -> Entry:
    """The rows of `worker/rows.py`. The system hands out their pages as sequences fill them."""
    shapes = row_shapes(limits.max_num_seqs, limits.max_model_len, kv.block_size, len(kv.groups))
    num_bytes = 4 * sum(map(prod, shapes.values()))
    return Entry("rows", num_bytes, f"tokens and block tables of {limits.max_num_seqs:,} sequences", is_late=True)


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
