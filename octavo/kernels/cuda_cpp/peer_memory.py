"""PeerMemory: memory on each rank's GPU that the kernels of all ranks read and write, over NVLink or PCIe.

    rank 0   allocates its part ── handle ──┐ gloo ┌──▶ maps rank 1's part    addresses[1]
    rank 1   allocates its part ── handle ──┘      └──▶ maps rank 0's part    addresses[0]

Handles are those of CUDA IPC, for processes on one machine. Whether stores arrive is tried once, because some machines
promise it and lose them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from ctypes import Structure, byref, c_char, c_size_t, c_uint, c_uint64, c_void_p
from typing import TYPE_CHECKING

import numpy as np

from octavo.kernels.cuda_cpp.module import check, cuda_driver

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives

_ENABLE_PEER_ACCESS = 1  # CUipcMem_flags: lazily
_GRANULE = 2 << 20  # a handle is of a whole allocation, and smaller ones may share one
_HANDLE_BYTES = 64


class PeerMemoryError(Exception):
    """The ranks cannot see each other's memory; on all of them."""


class PeerMemory:
    """addresses: of each rank's part, in this process. num_bytes: of a part, at least as many as asked for. Every byte
    is 0xFF at first."""

    def __init__(self, ranks: Collectives, num_bytes: int) -> None:
        """All ranks call it together. Raises PeerMemoryError on all, or on none."""
        self._ranks, self.num_bytes = ranks, -(-num_bytes // _GRANULE) * _GRANULE
        if not ranks.on_one_machine:
            raise PeerMemoryError("they are on several machines")
        self.addresses: list[int] = [0] * ranks.size
        self._closed = weakref.finalize(self, _free, ranks.rank, self.addresses)
        self._closed.atexit = False  # the driver frees a process's memory, and may be gone by then
        handles = np.zeros((ranks.size, _HANDLE_BYTES), np.uint8)

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
        address, handle = c_void_p(), _Handle()
        driver = cuda_driver()
        check(driver.cuMemAlloc_v2(byref(address), c_size_t(self.num_bytes)), "allocating memory for other ranks")
        self.addresses[self._ranks.rank] = address.value or 0
        self._fill(0)
        check(driver.cuIpcGetMemHandle(byref(handle), address), "sharing memory with other ranks")
        return np.frombuffer(bytes(handle), np.uint8)

    def _open(self, handles: np.ndarray) -> None:
        for rank, handle in enumerate(handles):
            if rank != self._ranks.rank:
                address, held = c_void_p(), _Handle.from_buffer_copy(handle.tobytes())
                code = cuda_driver().cuIpcOpenMemHandle_v2(byref(address), held, c_uint(_ENABLE_PEER_ACCESS))
                check(code, f"mapping the memory of rank {rank}")
                self.addresses[rank] = address.value or 0

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


class _Handle(Structure):
    _fields_ = (("content", c_char * _HANDLE_BYTES),)


def _free(own: int, addresses: Sequence[int]) -> None:
    for rank, address in enumerate(addresses):
        if address and rank == own:
            cuda_driver().cuMemFree_v2(c_uint64(address))
        elif address:
            cuda_driver().cuIpcCloseMemHandle(c_uint64(address))
