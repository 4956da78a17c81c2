"""PeerMemory: memory on each rank's GPU that the kernels of all ranks read and write, over NVLink or PCIe.

    rank 0   allocates its part ── handle ──┐ gloo ┌──▶ maps rank 1's part    addresses[1]
    rank 1   allocates its part ── handle ──┘      └──▶ maps rank 0's part    addresses[0]

Handles are those of CUDA IPC, for processes on one machine. Whether stores arrive is tried once, because some machines
promise it and lose them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from ctypes import byref, c_size_t, c_uint, c_uint64
from typing import TYPE_CHECKING

import numpy as np

from octavo.kernels.cuda_cpp.module import check, cuda_driver
from octavo.kernels.cuda_cpp.shared_allocation import (
    HANDLE_BYTES,
    allocate,
    free,
    handle_of,
    map_handle,
    unmap,
    whole_granules,
)

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives


class PeerMemoryError(Exception):
    """The ranks cannot see each other's memory; on all of them."""


class PeerMemory:
    """addresses: of each rank's part, in this process. num_bytes: of a part, at least as many as asked for. Every byte
    is 0xFF at first."""

    def __init__(self, ranks: Collectives, num_bytes: int) -> None:
        """All ranks call it together. Raises PeerMemoryError on all, or on none."""
        self._ranks, self.num_bytes = ranks, whole_granules(num_bytes)
        if not ranks.on_one_machine:
            raise PeerMemoryError("they are on several machines")
        self.addresses: list[int] = [0] * ranks.size
        self._closed = weakref.finalize(self, _free, ranks.rank, self.addresses)
        self._closed.atexit = False  # the driver frees a process's memory, and may be gone by then
        handles = np.zeros((ranks.size, HANDLE_BYTES), np.uint8)

        def share() -> None:
            handles[ranks.rank] = self._allocate()

        self._all(share)
        handles = ranks.gather_arrays(handles[ranks.rank])
        self._all(lambda: self._open(handles))
        self._all(self._tell_others)
        self._all(self._check_told)
        self._all(lambda: self._fill(0xFF))

    def close(self) -> None:
        """Free it here. No kernel of this rank may use it any more."""
        self._closed()

    def _all(self, act: Callable[[], None]) -> None:
        """Act; raise if it failed on any rank. No rank goes on before all have acted."""
        fault = None
        try:
            act()
        except (RuntimeError, OSError) as error:
            fault = error
        if self._ranks.smallest(int(fault is None))[0] == 0:
            self.close()
            raise PeerMemoryError(str(fault or "another rank cannot see the others' memory")) from fault

    def _allocate(self) -> np.ndarray:
        self.addresses[self._ranks.rank] = address = allocate(self.num_bytes)
        self._fill(0)
        return np.frombuffer(handle_of(address), np.uint8)

    def _open(self, handles: np.ndarray) -> None:
        for rank, handle in enumerate(handles):
            if rank != self._ranks.rank:
                self.addresses[rank] = map_handle(handle.tobytes())

    def _tell_others(self) -> None:
        """Write this rank's number, from 1 on, into each other rank's memory."""
        for rank, address in enumerate(self.addresses):
            if rank != self._ranks.rank:
                place, word = c_uint64(address + 4 * self._ranks.rank), c_uint(self._ranks.rank + 1)
                check(cuda_driver().cuMemcpyHtoD_v2(place, byref(word), c_size_t(4)), f"writing to rank {rank}")
        check(cuda_driver().cuCtxSynchronize(), "writing to other ranks")

    def _check_told(self) -> None:
        told = (c_uint * self._ranks.size)()
        own = c_uint64(self.addresses[self._ranks.rank])
        check(cuda_driver().cuMemcpyDtoH_v2(told, own, c_size_t(4 * len(told))), "reading what other ranks wrote")
        expected = [0 if rank == self._ranks.rank else rank + 1 for rank in range(self._ranks.size)]
        if list(told) != expected:
            raise RuntimeError("what a rank writes to another's memory does not arrive there")

    def _fill(self, byte: int) -> None:
        own = c_uint64(self.addresses[self._ranks.rank])
        check(cuda_driver().cuMemsetD8_v2(own, c_uint(byte), c_size_t(self.num_bytes)), "filling memory")
        check(cuda_driver().cuCtxSynchronize(), "filling memory")


def _free(own: int, addresses: Sequence[int]) -> None:
    for rank, address in enumerate(addresses):
        if address and rank == own:
            free(address)
        elif address:
            unmap(address)
