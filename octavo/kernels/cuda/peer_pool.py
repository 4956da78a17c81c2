"""A KV pool that another process reads: blocks go from one GPU to another, or stay on one, and the host sees none.

    exporter   pool ── handle of its allocation ──┐     another process
               mark ── handle, and its content ───┴──▶  maps both, reads the mark, copies blocks with the copy engines

The mark is memory with random bytes. Some machines map another GPU's memory and read garbage; there the mark differs.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from ctypes import byref, c_size_t, c_uint64, create_string_buffer
from dataclasses import dataclass, field

import torch

from octavo.kernels.block_mover import Fence
from octavo.kernels.cuda_cpp.module import check, cuda_driver
from octavo.kernels.cuda_cpp.shared_allocation import (
    HANDLE_BYTES,
    allocate,
    free,
    handle_of,
    map_handle,
    unmap,
    whole_allocation,
    whole_granules,
)

_MARK_BYTES = 64
_OFFSET_BYTES = 8
_PACKED_BYTES = 2 * HANDLE_BYTES + _OFFSET_BYTES + _MARK_BYTES


@dataclass(slots=True, eq=False, weakref_slot=True)
class PoolExport:
    """packed: the pool's handle, its offset in its allocation, the mark's handle, and the mark. Keep it as long as
    others may map the pool."""

    packed: bytes
    _free: weakref.finalize[..., PoolExport] = field(init=False)
    _mark: int

    def __post_init__(self) -> None:
        self._free = weakref.finalize(self, free, self._mark)
        self._free.atexit = False  # the driver frees a process's memory, and may be gone by then

    @classmethod
    def of(cls, blocks: torch.Tensor) -> PoolExport:
        """blocks: the pool. Raises RuntimeError if its allocation is none that the driver shares."""
        base, _ = whole_allocation(blocks.data_ptr())
        pool = handle_of(base) + (blocks.data_ptr() - base).to_bytes(_OFFSET_BYTES, "little")
        content, mark = os.urandom(_MARK_BYTES), allocate(whole_granules(_MARK_BYTES))
        check(cuda_driver().cuMemcpyHtoD_v2(c_uint64(mark), content, c_size_t(_MARK_BYTES)), "marking memory")
        return cls(pool + handle_of(mark) + content, mark)


class PeerPool:
    """Implements `octavo.kernels.block_mover.OtherPool`. blocks: the own pool, [N, block_bytes]. on_stream: inside it,
    work goes behind a fence, and is done at its end."""

    def __init__(
        self, exported: bytes, blocks: torch.Tensor, on_stream: Callable[[Fence], AbstractContextManager[None]]
    ) -> None:
        """Raises RuntimeError if what is mapped is not what the other process has."""
        if len(exported) != _PACKED_BYTES:
            raise RuntimeError(f"what opens a pool has {_PACKED_BYTES} bytes, and not {len(exported)}")
        self._blocks, self._on_stream = blocks, on_stream
        pool, mark = exported[:HANDLE_BYTES], exported[HANDLE_BYTES + _OFFSET_BYTES :]
        _compare_mark(mark[:HANDLE_BYTES], mark[HANDLE_BYTES:])
        self._base = map_handle(pool)
        offset = int.from_bytes(exported[HANDLE_BYTES : HANDLE_BYTES + _OFFSET_BYTES], "little")
        self._address = self._base + offset
        self.num_blocks = max(0, whole_allocation(self._base)[1] - offset) // blocks.shape[1]

    def copy(self, fence: Fence, their_ids: Sequence[int], block_ids: Sequence[int]) -> None:
        assert all(0 <= their_id < self.num_blocks for their_id in their_ids), "they are blocks of the other pool"
        own, size = self._blocks.data_ptr(), self._blocks.shape[1]
        with self._on_stream(fence):
            stream = c_uint64(torch.cuda.current_stream().cuda_stream)
            for theirs, ours, count in _runs(their_ids, block_ids):
                places = c_uint64(own + ours * size), c_uint64(self._address + theirs * size)
                check(cuda_driver().cuMemcpyAsync(*places, c_size_t(count * size), stream), "copying from another GPU")

    def close(self) -> None:
        """Nothing may be copied any more."""
        unmap(self._base)


def _compare_mark(handle: bytes, content: bytes) -> None:
    mark, read = map_handle(handle), create_string_buffer(_MARK_BYTES)
    try:
        check(cuda_driver().cuMemcpyDtoH_v2(byref(read), c_uint64(mark), c_size_t(_MARK_BYTES)), "reading a mark")
    finally:
        unmap(mark)
    if read.raw != content:
        raise RuntimeError("what another process has written on its GPU is not what is read here")


def _runs(their_ids: Sequence[int], block_ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Blocks that follow each other in both pools: the first of each, and how many."""
    begin = 0
    for end in range(1, len(block_ids) + 1):
        goes_on = end < len(block_ids) and (
            their_ids[end] == their_ids[end - 1] + 1 and block_ids[end] == block_ids[end - 1] + 1
        )
        if not goes_on:
            yield their_ids[begin], block_ids[begin], end - begin
            begin = end
