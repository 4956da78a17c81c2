"""BlockMover: reads whole blocks of a KV pool into the host's memory, and writes blocks from there, or another pool.

    engine's thread     fence ─────────────────────── submits steps as ever
    any other thread          read(fence, blocks, memory)         waits for the steps before the fence, no others

Who moves blocks holds them meanwhile: no step writes a block that is read, or reads one that is written.
`kernels/cuda/block_mover.py` is for a pool in a GPU's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

#: what `fence` gives, each mover's own
Fence = object


class OtherPool(Protocol):
    """The pool of another process, mapped into this one."""

    num_blocks: int

    def copy(self, fence: Fence, their_ids: Sequence[int], block_ids: Sequence[int]) -> None:
        """These blocks of the own pool = those of the other. Waits until it is done, for every later step."""

    def close(self) -> None: ...


class BlockMover(Protocol):
    """order: names how the backend orders elements inside a block; blocks of equal orders are interchangeable."""

    order: str
    block_bytes: int

    def fence(self) -> Fence:
        """The end of all steps submitted so far. Only who submits them may call it."""

    def read(self, fence: Fence, block_ids: Sequence[int], out: Bytes) -> None:
        """out [n, block_bytes] = these blocks. Waits until it is done."""

    def write(self, fence: Fence, block_ids: Sequence[int], data: Bytes) -> None:
        """These blocks = data [n, block_bytes]. Waits until it is done, for every later step."""

    def wait(self, fence: Fence) -> None:
        """Wait for the steps before a fence."""

    def pin(self, memory: Bytes) -> Callable[[], None]:
        """Make copies from and to this memory fast -> the function that undoes it."""

    def exported(self) -> bytes:
        """What another process of this machine maps the pool with; empty: none can."""

    def open(self, exported: bytes) -> OtherPool:
        """The pool of another process. Raises RuntimeError if it cannot be read from here."""


class HostMover:
    """blocks: the pool, [N, block_bytes]. after_steps: gives a future that is done after the steps submitted so far;
    None: a step is done when it is submitted."""

    def __init__(self, order: str, blocks: Bytes, after_steps: Callable[[], Future[None]] | None = None) -> None:
        self.order = order
        self.block_bytes = blocks.shape[1]
        self._blocks = blocks
        self._after_steps = after_steps

    def after(self, after_steps: Callable[[], Future[None]]) -> HostMover:
        """The same for steps that run on a thread of their own."""
        return HostMover(self.order, self._blocks, after_steps)

    def fence(self) -> Future[None] | None:
        return None if self._after_steps is None else self._after_steps()

    def read(self, fence: Fence, block_ids: Sequence[int], out: Bytes) -> None:
        _wait(fence)
        for place, block_id in enumerate(block_ids):
            out[place] = self._blocks[block_id]

    def write(self, fence: Fence, block_ids: Sequence[int], data: Bytes) -> None:
        _wait(fence)
        for place, block_id in enumerate(block_ids):
            self._blocks[block_id] = data[place]

    def wait(self, fence: Fence) -> None:
        _wait(fence)

    def pin(self, memory: Bytes) -> Callable[[], None]:
        return lambda: None

    def exported(self) -> bytes:
        return b""

    def open(self, exported: bytes) -> OtherPool:
        raise RuntimeError("the pool is in a host's memory, which others cannot map")


def _wait(fence: Fence) -> None:
    if isinstance(fence, Future):
        fence.result()
