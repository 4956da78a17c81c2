"""BlockTraffic: what an engine's loop knows of other engines: it lends them KV blocks, borrows theirs, or neither.

An engine alone has neither side, and all of this does nothing.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from typing import cast

import numpy as np

from octavo.cache.block_loans import BlockLoans
from octavo.cache.blocks import NULL_BLOCK
from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.engine.llm_engine import LLMEngine
from octavo.errors import ConfigError
from octavo.executor.executor import Executor
from octavo.kernels.block_mover import BlockMover
from octavo.models.loader import open_checkpoint
from octavo.observe.machine import installed_version
from octavo.processes.block_borrower import BlockBorrower
from octavo.processes.block_lender import BlockLender
from octavo.processes.block_messages import BlockCard
from octavo.processes.household import TrafficTask
from octavo.processes.own_blocks import OwnBlocks
from octavo.request import Request, Sequence
from octavo.worker.task import WorkerShape

_SAMPLE_BYTES = 64


class BlockTraffic:
    """Owner of both sides. mailbox: readable when they have work for the engine's thread."""

    def __init__(self, task: TrafficTask | None, config: EngineConfig, engine: LLMEngine) -> None:
        assert isinstance(engine.core, EngineCore), "this process has one engine"
        core = engine.core
        self.mailbox = Mailbox()
        self._lender: BlockLender | None = None
        self._borrower: BlockBorrower | None = None
        if task is None:
            return
        if not config.cache.enable_prefix_caching:
            raise ConfigError(
                "prefill and decode apart find blocks by their hashes, so enable_prefix_caching must stay on"
            )
        if config.lora.enable_lora:
            raise ConfigError(
                "prefill and decode apart, and enable_lora: engines hand each other no blocks of adapters yet; leave "
                "one of the two out"
            )
        executor = cast(Executor, core.executor)  # an engine with a model has workers
        mover, loans = executor.mover(), BlockLoans(core.cache, engine.events, time.monotonic)
        _warm_up(mover)
        card = _card(config, executor.shape, mover)
        own = OwnBlocks(card, core, loans, mover, engine.events, task.secret, self.mailbox.post)
        if task.listens is not None:
            self._lender = BlockLender(task.listens, own, executor.shape.limits.vocab_size)
        if task.peers:
            self._borrower = BlockBorrower(task.peers, own, timeout_s=task.timeout_s, min_tokens=task.min_tokens)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until `turn` must be called even if nothing happens. None: no limit."""
        return None if self._borrower is None else self._borrower.seconds_left

    def turn(self) -> None:
        """Between two steps."""
        self.mailbox.do_all()
        if self._borrower is not None:
            self._borrower.turn()

    def request_ended(self, request: Request) -> None:
        """A front end's request is gone from the engine."""
        if self._borrower is not None:
            self._borrower.ended(request)

    def stepped(self, sequence: Sequence) -> None:
        """A step brought something to a sequence that no front end waits for."""
        if self._lender is not None and sequence.finish_reason is not None:
            self._lender.ended(sequence)

    def close(self) -> None:
        for side in (self._lender, self._borrower):
            if side is not None:
                side.close()
        self.mailbox.close()


class Mailbox:
    """Work that other threads leave for the engine's thread, which may be asleep on its sockets. fileno: readable when
    there is work."""

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._bell, self._ringer = socket.socketpair()
        for end in (self._bell, self._ringer):
            end.setblocking(False)

    def fileno(self) -> int:
        return self._bell.fileno()

    def post(self, work: Callable[[], None]) -> None:
        """From any thread."""
        self._work.append(work)
        with suppress(OSError):  # full: it is readable already; closed: nobody works any more
            self._ringer.send(b"!")

    def do_all(self) -> None:
        """On the owner's thread: all work that is there."""
        if not self._work:
            return
        with suppress(BlockingIOError):
            while self._bell.recv(4096):
                pass
        while self._work:
            self._work.popleft()()

    def close(self) -> None:
        self._bell.close()
        self._ringer.close()


def _warm_up(mover: BlockMover) -> None:
    """Move the null block once, so that no request waits for a kernel to be compiled."""
    memory = np.zeros((1, mover.block_bytes), np.uint8)
    mover.read(mover.fence(), [NULL_BLOCK], memory)
    mover.write(mover.fence(), [NULL_BLOCK], memory)


def _card(config: EngineConfig, shape: WorkerShape, mover: BlockMover) -> BlockCard:
    return BlockCard(
        version=installed_version(),
        model=_digest(config, shape),
        order=mover.order,
        dtype=" with ".join(filter(None, (shape.layout.dtype, shape.kv_scales))),
        block_size=shape.layout.block_size,
        block_bytes=mover.block_bytes,
        groups=tuple((group.layers, group.window) for group in shape.groups),
        num_ranks=config.backend.tensor_parallel_size,
        num_stages=config.backend.pipeline_parallel_size,
    )


def _digest(config: EngineConfig, shape: WorkerShape) -> str:
    """Of the architecture, the type it computes in, and a few bytes of each tensor: enough to tell two trainings of a
    model apart. Random weights are known by their seed."""
    digest = blake2b(repr((shape.architecture, config.model.dtype, config.model.quantization)).encode(), digest_size=16)
    if config.model.load_format == "dummy":
        digest.update(b"dummy %d" % config.model.seed)
        return digest.hexdigest()
    stored = open_checkpoint(replace(config.model, dtype="auto")).stored
    for name in sorted(stored):
        digest.update(f"{name} {stored[name].dtype} {stored[name].shape};".encode())
        data = stored[name].read().data
        for begin in (0, len(data) // 2):
            digest.update(data[begin : begin + _SAMPLE_BYTES].tobytes())
    return digest.hexdigest()
