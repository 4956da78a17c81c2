"""DeviceMover: reads blocks of a GPU's KV pool into the host's memory, and writes blocks from there or another GPU.

    steps     [ step 1 ........ ][ step 2 ........ ][ step 3 ...
                       fence │
    its own                  [ gather │ copy to the host │ gather │ copy ... ]

It has a stream of its own, which waits for the steps before the fence, so steps go on meanwhile. Blocks are gathered in
one launch into a small buffer on the GPU and leave it in one copy, as many at a time as the buffer holds. Blocks of
another process's pool are copied straight into this one (`peer_pool.py`), and take no kernel and no buffer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from octavo.kernels.block_mover import Bytes, Fence
from octavo.kernels.cuda.peer_pool import PeerPool, PoolExport
from octavo.kernels.cuda.sizes import MOVE_BYTES, move_buffer
from octavo.kernels.triton.packed_blocks import gather_blocks, scatter_blocks


class DeviceMover:
    """Implements `octavo.kernels.block_mover.BlockMover`. blocks: the pool, [N, block_bytes]. Any thread may move; they
    take turns."""

    def __init__(self, order: str, blocks: torch.Tensor, buffer_size: int = MOVE_BYTES) -> None:
        self.order = order
        self.block_bytes = blocks.shape[1]
        self._blocks = blocks
        device = blocks.device
        self._is_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._is_gpu else None
        shape = move_buffer(self.block_bytes, buffer_size)
        self._buffer = torch.empty(shape, dtype=torch.uint8, device=device)
        self._turn = threading.Lock()
        self._export: PoolExport | None = None

    @property
    def num_bytes(self) -> int:
        return self._buffer.nbytes

    def fence(self) -> Fence:
        if not self._is_gpu:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._blocks.device))
        return event

    def read(self, fence: Fence, block_ids: Sequence[int], out: Bytes) -> None:
        host = torch.from_numpy(out)
        with self._on_stream(fence):
            for part, ids in self._parts(block_ids):
                packed = self._buffer[: len(ids)]
                gather_blocks(self._blocks, ids, packed)
                host[part].copy_(packed, non_blocking=True)

    def write(self, fence: Fence, block_ids: Sequence[int], data: Bytes) -> None:
        host = torch.from_numpy(data)
        with self._on_stream(fence):
            for part, ids in self._parts(block_ids):
                packed = self._buffer[: len(ids)]
                packed.copy_(host[part], non_blocking=True)
                scatter_blocks(packed, ids, self._blocks)

    def wait(self, fence: Fence) -> None:
        with self._on_stream(fence):
            pass

    def pin(self, memory: Bytes) -> Callable[[], None]:
        """Copies of memory that CUDA refuses to pin are only slower."""
        if not self._is_gpu:
            return lambda: None
        runtime, address = torch.cuda.cudart(), memory.ctypes.data
        if int(runtime.cudaHostRegister(address, memory.nbytes, 0)):
            return lambda: None

        def undo() -> None:
            runtime.cudaHostUnregister(address)

        return undo

    def exported(self) -> bytes:
        """Empty if the driver does not share the pool's allocation, as with expandable segments."""
        if not self._is_gpu:
            return b""
        with self._context():
            if self._export is None:
                try:
                    self._export = PoolExport.of(self._blocks)
                except RuntimeError:
                    return b""
            return self._export.packed

    def open(self, exported: bytes) -> PeerPool:
        if not self._is_gpu:
            raise RuntimeError("the pool is not in a GPU's memory")
        with self._context():
            return PeerPool(exported, self._blocks, self._on_stream)

    @contextmanager
    def _context(self) -> Iterator[None]:
        """Inside, this thread has the GPU's context."""
        assert self._stream is not None, "there is a GPU"
        with torch.cuda.device(self._blocks.device):
            self._stream.query()  # makes it current, on a thread that has not used the GPU yet
            yield

    def _parts(self, block_ids: Sequence[int]) -> Iterator[tuple[slice, torch.Tensor]]:
        """As many blocks at a time as the buffer holds: their places, and their ids on the device."""
        size = len(self._buffer)
        ids = torch.tensor(list(block_ids), dtype=torch.int32, device=self._blocks.device)
        for start in range(0, len(ids), size):
            part = slice(start, min(start + size, len(ids)))
            yield part, ids[part]

    @contextmanager
    def _on_stream(self, fence: Fence) -> Iterator[None]:
        """Inside, work goes to the stream, after the fence; at the end it is done."""
        with self._turn:
            if self._stream is None:
                yield
                return
            assert isinstance(fence, torch.cuda.Event), "a fence of this mover"
            with self._context(), torch.cuda.stream(self._stream):
                self._stream.wait_event(fence)
                yield
                self._stream.synchronize()
