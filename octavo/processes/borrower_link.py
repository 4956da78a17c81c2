"""BorrowerLink: a decode engine's connection with one prefill engine, which it makes again whenever it is lost.

One thread connects, reads, and writes the blocks that come into the pool; another one sends. A transfer that the engine
has given up is read to its end, and written nowhere. Where the other engine's pool can be mapped nothing is sent, and
the thread copies blocks from there.
"""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from functools import partial
from typing import Protocol

from octavo.kernels.block_mover import OtherPool
from octavo.observe.logging import LOGGER
from octavo.processes.block_door import Slots, knock
from octavo.processes.block_messages import (
    TO_BORROWER,
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
    ToLender,
    printable,
    unpack_ids,
)
from octavo.processes.block_wire import Wire
from octavo.processes.household import UNIX
from octavo.processes.incoming_blocks import Incoming
from octavo.processes.own_blocks import OwnBlocks

#: seconds between two attempts to connect
_RETRY_S, _LONGEST_RETRY_S = 0.2, 5.0
#: requests that wait for one engine at once; it would close the connection at twice as many (lender_link.py)
_MOST_OPEN = 512
#: the most bytes of memory for blocks that travel
_MOST_BYTES = 1 << 30


class Borrower(Protocol):
    """Whose connection it is; but for `own`, it belongs to the engine's thread."""

    own: OwnBlocks

    def found(self, number: int, num_blocks: int) -> None: ...
    def done(self, number: int) -> None: ...
    def failed(self, number: int, why: str) -> None: ...
    def lost(self, link: BorrowerLink, why: str) -> None: ...


class BorrowerLink:
    """peer: its address. is_up: connected. is_silent: it has let a request wait in vain, and said nothing since.
    num_asked, num_open: blocks that are waited for, and requests that wait; the engine's thread counts them. state: how
    it is, for people."""

    def __init__(self, address: str, borrower: Borrower) -> None:
        self.peer = "the prefill engine" if address.startswith(UNIX) else f"the prefill engine at {address}"
        self.is_up = self.is_silent = False
        self.num_asked = self.num_open = 0
        self._why_down = "is not connected yet"
        self._address, self._borrower = address, borrower
        self._coming: dict[int, Incoming[BorrowerLink]] = {}
        self._outgoing: queue.SimpleQueue[ToLender | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._wire: Wire | None = None
        self._slots: Slots | None = None
        self._pool: OtherPool | None = None
        threading.Thread(target=self._run, name="octavo-blocks", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether it may be asked for more."""
        return self.is_up and not self.is_silent and self.num_open < _MOST_OPEN

    @property
    def state(self) -> str:
        if self.is_up and not self.is_silent:
            return f"has {self.num_open} prompts to compute already"
        return "does not answer" if self.is_silent and self.is_up else self._why_down

    def ask(self, incoming: Incoming[BorrowerLink], question: Fetch) -> None:
        self._coming[incoming.number] = incoming
        self.send(question)

    def forget(self, number: int) -> None:
        """Its connection was lost."""
        self._coming.pop(number, None)

    def send(self, message: Fetch | Cancel) -> None:
        """Never waits. Without a connection it does nothing: `lost` has said so, or will."""
        self._outgoing.put(message)

    def close(self) -> None:
        self._closed.set()
        if self._wire is not None:
            self._wire.close()

    def _run(self) -> None:
        """Connect, read until the connection is lost, and again."""
        wait, told = _RETRY_S, ""
        while not self._closed.is_set():
            why = "the connection ended"
            try:
                self._connect_and_read()
            except (OSError, EOFError, BadMessageError) as error:
                why = str(error) or type(error).__name__
            except Exception as fault:  # of the device, while it writes blocks
                LOGGER.exception("blocks of %s could not be written", self.peer)
                why = f"{type(fault).__name__}: {fault}"
            if self.is_up:
                wait, told = _RETRY_S, ""
            self._come_down(why)
            if why != told and not self._closed.is_set():
                LOGGER.error("%s is not connected: %s; prompts are computed here until it is", self.peer, why)
                told = why
            self._closed.wait(wait)
            wait = min(2 * wait, _LONGEST_RETRY_S)

    def _connect_and_read(self) -> None:
        borrower = self._borrower
        wire = self._wire = Wire(knock(self._address, borrower.own.secret))
        wire.send(borrower.own.card)
        match wire.receive(TO_BORROWER):
            case Admitted(num_slots, slot_size, pool):
                self._slots = self._memory(wire, num_slots, slot_size)
                self._open_pool(wire, pool)
            case Refused(why):
                raise BadMessageError(printable(why))
            case other:
                raise BadMessageError(f"it sent a {type(other).__name__} in place of a welcome")
        self._outgoing = queue.SimpleQueue()
        sender = threading.Thread(target=_send_all, args=(wire, self._outgoing), name="octavo-blocks", daemon=True)
        sender.start()
        way = "through the host's memory" if self._pool is None else "from its pool into this one"
        LOGGER.info("%s is connected: blocks come %s", self.peer, way)
        self.is_silent, self.is_up = False, True
        while True:
            message = wire.receive(TO_BORROWER)
            self.is_silent = False
            self._take(wire, message)

    def _memory(self, wire: Wire, num_slots: int, slot_size: int) -> Slots:
        mover = self._borrower.own.mover
        if not mover.block_bytes <= slot_size <= _MOST_BYTES or not 0 <= num_slots * slot_size <= _MOST_BYTES:
            raise BadMessageError(f"{num_slots} slots of {slot_size} bytes do not suit blocks of {mover.block_bytes}")
        if num_slots:
            return Slots.of_another(num_slots, slot_size, mover, wire.receive_memory())
        return Slots(1, slot_size, mover)

    def _open_pool(self, wire: Wire, exported: bytes) -> None:
        """Map the other engine's pool, if one can: no block needs to be sent then."""
        if not exported or not self._address.startswith(UNIX):
            return
        try:
            self._pool = self._borrower.own.mover.open(exported)
        except RuntimeError as error:
            LOGGER.warning("blocks of %s come through the host's memory: %s", self.peer, error)
        else:
            wire.send(Opened())

    def _take(self, wire: Wire, message: object) -> None:
        post, borrower = self._borrower.own.post, self._borrower
        match message:
            case Found(number, num_blocks) if number in self._coming and not self._coming[number].is_found:
                post(partial(borrower.found, number, num_blocks))
                self._coming[number].wait_for_room()
            case Chunk(number, slot, num_blocks) if number in self._coming:
                self._take_chunk(wire, self._coming[number], slot, num_blocks)
            case There(number, packed) if number in self._coming and self._pool is not None:
                self._coming[number].copy(self._pool, unpack_ids(packed))
                self._outgoing.put(Read(number))
            case Done(number) if (incoming := self._coming.pop(number, None)) is not None:
                if incoming.is_whole:
                    post(partial(borrower.done, number))
                else:
                    post(partial(borrower.failed, number, f"{self.peer} sent fewer blocks than it had found"))
            case Failed(number, why) if self._coming.pop(number, None) is not None:
                post(partial(borrower.failed, number, f"{self.peer}: {printable(why)}"))
            case _:
                raise BadMessageError(f"it sent a {type(message).__name__} that may not come now")

    def _take_chunk(self, wire: Wire, incoming: Incoming[BorrowerLink], slot: int, count: int) -> None:
        slots = self._slots
        assert slots is not None, "they come with the welcome"
        is_shared = slots.descriptor is not None
        if not 0 < count <= slots.blocks_per_slot or slot not in (range(slots.num_slots) if is_shared else (-1,)):
            raise BadMessageError(f"it sent {count} blocks in slot {slot}")
        if not is_shared:
            wire.receive_blocks(slots.blocks(0, count))
        incoming.write(self._borrower.own.mover, slots, max(slot, 0), count)
        if is_shared:
            self._outgoing.put(Free(slot))

    def _come_down(self, why: str) -> None:
        self.is_up = False
        self._why_down = f"is not connected: {why}"
        self._outgoing.put(None)
        self._coming.clear()
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._slots is not None:
            self._slots.close()
            self._slots = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._borrower.own.post(partial(self._borrower.lost, self, why))


def _send_all(wire: Wire, outgoing: queue.SimpleQueue[ToLender | None]) -> None:
    """The sender's thread."""
    while (message := outgoing.get()) is not None:
        with suppress(OSError):
            wire.send(message)
