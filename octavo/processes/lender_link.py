"""LenderLink: a prefill engine's connection with one decode engine. One thread reads, another one sends.

The engine's thread only leaves work in the sender's queue. Once the connection is closed the sender sends nothing more,
and still settles each loan that it was given, until `stop`.

    blocks are sent      settled once the last one has been sent
    blocks are read      by the decode engine, from the pool: settled once it says so, and before it is told Done
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Protocol

from octavo.cache.block_loans import Loan
from octavo.kernels.block_mover import Fence
from octavo.observe.logging import LOGGER
from octavo.processes.block_door import Slots
from octavo.processes.block_messages import (
    MAX_TEXT,
    TO_LENDER,
    Admitted,
    BadMessageError,
    Cancel,
    Chunk,
    Done,
    Failed,
    Fetch,
    Found,
    Free,
    Opened,
    Read,
    Refused,
    There,
    ToBorrower,
    pack_ids,
)
from octavo.processes.block_wire import Wire
from octavo.processes.own_blocks import OwnBlocks

_NUM_SLOTS = 4
_SLOT_SIZE = 16 << 20
#: seconds that a decode engine may take to free a slot, or to read blocks
_READ_S = 30.0
#: prompts that it may wait for at once
_MOST_OPEN = 1024
_GIVEN_UP = "it was given up"


class Lender(Protocol):
    """Whose connection it is; but for `own`, it belongs to the engine's thread."""

    own: OwnBlocks

    def fetch(self, link: LenderLink, message: Fetch) -> None: ...
    def cancel(self, link: LenderLink, number: int | None) -> None: ...
    def gone(self, link: LenderLink) -> None: ...
    def settle(self, loan: Loan) -> None: ...


class LenderLink:
    """Owner of the socket, and of the memory for blocks that travel."""

    def __init__(self, wire: Wire, lender: Lender) -> None:
        self._wire, self._lender = wire, lender
        self._outgoing: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._open: set[int] = set()  # numbers of questions without an answer
        self._slots: Slots | None = None
        self._reads_pool = False
        self._being_read: dict[int, tuple[Loan, float]] = {}  # by their questions; until when

    def refuse(self, why: str) -> None:
        with suppress(OSError):
            self._wire.send(Refused(why))
        self._wire.close()

    def run(self, *, is_local: bool) -> None:
        """Read until the other end closes, or sends what it should not."""
        lender = self._lender
        sender = Thread(target=self._send_all, name="octavo-blocks", daemon=True)
        try:
            self._slots = self._share(is_local=is_local)
            sender.start()
            while True:
                self._take(self._wire.receive(TO_LENDER))
        except BadMessageError as error:
            LOGGER.error("the connection with a decode engine is closed: it sent %s", error)
        except (OSError, EOFError):
            pass
        finally:
            self._wire.close()
            lender.own.post(partial(lender.gone, self))
            if sender.ident is not None:
                sender.join()
            if self._slots is not None:
                self._slots.close()

    def say(self, message: ToBorrower) -> None:
        """Send a message, after those before it."""
        if isinstance(message, Failed):
            self._open.discard(message.number)
        self._outgoing.put(partial(self._wire.send, message))

    def hand_over(self, number: int, loan: Loan, fence: Fence) -> None:
        """Send the blocks of a loan, or have them read, and settle it."""
        work = self._lay_open if self._reads_pool else self._send_loan
        self._outgoing.put(partial(work, number, loan, fence))

    def stop(self) -> None:
        """End the sender, once it has settled everything. Nothing may be handed over afterwards."""
        self._outgoing.put(None)

    def close(self) -> None:
        self._wire.close()

    def _share(self, *, is_local: bool) -> Slots:
        mover = self._lender.own.mover
        size = max(_SLOT_SIZE // mover.block_bytes, 1) * mover.block_bytes
        if is_local and hasattr(os, "memfd_create"):  # Linux
            slots = Slots.shared(_NUM_SLOTS, size, mover)
            self._wire.send(Admitted(_NUM_SLOTS, size, mover.exported()))
            assert slots.descriptor is not None, "shared memory has one"
            self._wire.send_memory(slots.descriptor)
        else:
            slots = Slots(1, size, mover)
            self._wire.send(Admitted(0, size))
        for slot in range(slots.num_slots):
            self._free.put(slot)
        return slots

    def _take(self, message: object) -> None:
        lender = self._lender
        match message:
            case Fetch():
                if len(self._open) >= _MOST_OPEN or message.number in self._open:
                    raise BadMessageError(f"more than {_MOST_OPEN} questions at once, or one of them twice")
                self._open.add(message.number)
                lender.own.post(partial(lender.fetch, self, message))
            case Cancel(number):
                if number in self._open:
                    self._cancelled.add(number)
                    self._let_go(number, Failed(number, _GIVEN_UP))
                lender.own.post(partial(lender.cancel, self, number))
            case Free(slot) if self._slots is not None and 0 <= slot < self._slots.num_slots:
                self._free.put(slot)
            case Opened():
                self._reads_pool = True
            case Read(number):
                self._let_go(number, Done(number))
            case _:
                raise BadMessageError(f"a {type(message).__name__} that may not come now")

    def _send_all(self) -> None:
        """The sender's thread. Once the connection is closed it sends nothing, and settles what is left."""
        while (work := self._next_work()) is not None:
            try:
                work()
            except (OSError, queue.Empty):
                self._wire.close()
        self._settle_reads()

    def _next_work(self) -> Callable[[], None] | None:
        """Closes the connection if blocks are being read for too long."""
        while True:
            ends = [until for _, until in list(self._being_read.values())]
            left = min(ends) - time.monotonic() if ends else None
            with suppress(queue.Empty):
                if left is None or left > 0:
                    return self._outgoing.get(timeout=left)
            self._wire.close()
            self._settle_reads()

    def _send_loan(self, number: int, loan: Loan, fence: Fence) -> None:
        lender, slots = self._lender, self._slots
        assert slots is not None, "the sender starts with them"
        ids, size = loan.block_ids, slots.blocks_per_slot
        try:
            self._wire.send(Found(number, len(loan.hashes) - 1))
            for begin in range(0, len(ids), size):
                if number in self._cancelled:
                    break
                self._send_chunk(number, ids[begin : begin + size], fence, slots)
            self._wire.send(Failed(number, _GIVEN_UP) if number in self._cancelled else Done(number))
        except (OSError, queue.Empty):
            raise
        except Exception as fault:  # of the device
            self._wire.send(Failed(number, _told(fault)))
        finally:
            self._open.discard(number)
            self._cancelled.discard(number)
            lender.own.post(partial(lender.settle, loan))

    def _send_chunk(self, number: int, block_ids: Sequence[int], fence: Fence, slots: Slots) -> None:
        slot = self._free.get(timeout=_READ_S)
        data = slots.blocks(slot, len(block_ids))
        self._lender.own.mover.read(fence, block_ids, data)
        if slots.descriptor is not None:
            self._wire.send(Chunk(number, slot, len(block_ids)))
            return
        self._wire.send(Chunk(number, -1, len(block_ids)))
        self._wire.send_blocks(data)
        self._free.put(slot)

    def _lay_open(self, number: int, loan: Loan, fence: Fence) -> None:
        """Have the blocks of a loan read from the pool."""
        self._being_read[number] = loan, time.monotonic() + _READ_S
        try:
            self._wire.send(Found(number, len(loan.hashes) - 1))
            self._lender.own.mover.wait(fence)
            self._wire.send(There(number, pack_ids(loan.block_ids)))
        except OSError:
            raise  # it is settled at the end
        except Exception as fault:  # of the device
            self._let_go(number, Failed(number, _told(fault)))
        if number in self._cancelled:  # before it could be read
            self._let_go(number, Failed(number, _GIVEN_UP))

    def _let_go(self, number: int, message: Done | Failed) -> None:
        """If its blocks were being read, say this, and settle the loan. Any thread may call it."""
        if (being_read := self._being_read.pop(number, None)) is not None:
            self._open.discard(number)
            self._cancelled.discard(number)
            self._outgoing.put(partial(self._wire.send, message))
            self._lender.own.post(partial(self._lender.settle, being_read[0]))

    def _settle_reads(self) -> None:
        for number in list(self._being_read):
            self._let_go(number, Failed(number, _GIVEN_UP))


def _told(fault: Exception) -> str:
    return f"{type(fault).__name__}: {fault}"[:MAX_TEXT]
