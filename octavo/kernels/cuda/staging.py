"""From host arrays to the device: all that a step needs, in one copy.

pinned   | ids | positions | ... |      |  a ring: a step's arrays lie after those of the steps before,
device   | ids | positions | ... |      |  and the host waits only when it comes round
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNMENT = 16
_TORCH = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.uint64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


class Staging:
    """Owner of both rings. What `upload` returns is good for kernels launched before the ring comes round."""

    def __init__(self, device: torch.device, num_bytes: int = 8 << 20) -> None:
        self._device = device
        self._next = 0
        self._allocate(num_bytes)

    def upload(self, arrays: Sequence[NDArray[Any]]) -> list[torch.Tensor]:
        """The arrays on the device, in their shapes; uint64 as int64 bits."""
        offsets = [0]
        for array in arrays:
            offsets.append(-(-(offsets[-1] + array.nbytes) // _ALIGNMENT) * _ALIGNMENT)
        begin = self._reserve(offsets[-1])
        for array, offset in zip(arrays, offsets, strict=False):
            at = begin + offset
            self._host[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        end = begin + offsets[-1]
        self._ring[begin:end].copy_(self._pinned[begin:end], non_blocking=True)
        return [
            self._ring[begin + offset : begin + offset + array.nbytes].view(_TORCH[array.dtype]).view(array.shape)
            for array, offset in zip(arrays, offsets, strict=False)
        ]

    def _reserve(self, num_bytes: int) -> int:
        if num_bytes > self._host.nbytes // 4:
            self._wait()
            self._allocate(8 * num_bytes)
        elif self._next + num_bytes > self._host.nbytes:
            self._wait()
            self._next = 0
        begin = self._next
        self._next += num_bytes
        return begin

    def _allocate(self, num_bytes: int) -> None:
        self._pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        self._host: NDArray[np.uint8] = self._pinned.numpy()
        self._ring = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        self._next = 0

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()
