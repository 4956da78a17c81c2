"""BlockBorrower: a decode engine's side. It has prompts computed by prefill engines, and gets their blocks.

    a request comes ──▶ held in the scheduler ──▶ Fetch to the peer with the least to do
                                │                       │ blocks are borrowed from the pool, and written as they come
                                ▼                       ▼
             takes its turn, with all blocks that have come by now: what is missing is computed here

Whatever goes wrong (a peer that is gone, slow or refuses, no room, nonsense) only means that it computes more, and is
in the event log with its reason. A peer that has let a request wait in vain is not asked again until it says something.
"""

from __future__ import annotations

import itertools
import time

from octavo.observe.events import BlocksCame, Waits
from octavo.processes.block_messages import MAX_TEXT, Cancel, Fetch, pack_ids
from octavo.processes.borrower_link import BorrowerLink
from octavo.processes.incoming_blocks import Incoming
from octavo.processes.own_blocks import OwnBlocks
from octavo.request import Request

#: seconds until an abandoned transfer is looked at again
_RETRY_S = 0.02


class BlockBorrower:
    """Owner of the connections. All calls must come from the engine's thread; own: its blocks."""

    def __init__(
        self,
        peers: tuple[str, ...],
        own: OwnBlocks,
        *,
        timeout_s: float,
        min_tokens: int,
    ) -> None:
        self.own = own
        self._core, self._loans, self._events = own.core, own.loans, own.events
        self._timeout_s, self._min_tokens = timeout_s, min_tokens
        self._numbers = itertools.count()
        self._incoming: dict[int, Incoming[BorrowerLink]] = {}
        self._of_request: dict[str, Incoming[BorrowerLink]] = {}
        self._abandoned: list[Incoming[BorrowerLink]] = []
        self._links = [BorrowerLink(peer, self) for peer in peers]
        self._core.admit = self._admit

    def _admit(self, request: Request) -> None:
        """Let a request wait for its turn, and have its prompt computed elsewhere if that is worth it. Raises
        InvalidRequestError."""
        if not self._may_borrow(request):
            self._core.enter(request)
            return
        self._core.enter(request, is_held=True)
        if not self._ask(request):
            self._core.release(request)

    def ended(self, request: Request) -> None:
        """Nobody waits for it any more."""
        if (incoming := self._of_request.get(request.request_id)) is not None:
            self._give_up(incoming, "the request ended", tells=True)

    def turn(self) -> None:
        """Give up what takes too long."""
        now = time.monotonic()
        for incoming in [one for one in self._incoming.values() if one.deadline <= now]:
            incoming.link.is_silent = True
            waited = f"{incoming.link.peer} sent no blocks within kv_transfer_timeout = {self._timeout_s:g} s"
            self._give_up(incoming, waited, tells=True)
        if self._abandoned:
            self._abandoned = [one for one in self._abandoned if not self._settle_abandoned(one)]

    @property
    def seconds_left(self) -> float | None:
        """Seconds until `turn` must be called even if nothing happens. None: no limit."""
        if self._abandoned:
            return _RETRY_S
        if not self._incoming:
            return None
        return max(0.0, min(one.deadline for one in self._incoming.values()) - time.monotonic())

    def close(self) -> None:
        for link in self._links:
            link.close()

    # What the connections' threads post

    def found(self, number: int, num_blocks: int) -> None:
        """A peer has the blocks of a prompt, and sends them: room for them, or None."""
        incoming = self._incoming.get(number)
        if incoming is None:
            return
        request, held, asked = incoming.request, incoming.num_held, len(incoming.hashes) - 1
        if not held < num_blocks <= asked:
            self._give_up(incoming, f"{incoming.link.peer} found {num_blocks} blocks of {asked}", tells=True)
            return
        sequence_id = request.sequences[0].sequence_id
        loan = self._loans.borrow(sequence_id, incoming.hashes, held, num_blocks)
        if loan is None:
            self._give_up(incoming, "no KV blocks are free for what was sent", tells=True)
            return
        incoming.loan = loan
        incoming.decide((loan.block_ids, self.own.mover.fence()))

    def done(self, number: int) -> None:
        """All blocks have been written."""
        incoming = self._incoming.get(number)
        if incoming is None or incoming.loan is None:
            return
        self._forget(incoming)
        self._loans.settle(incoming.loan, is_whole=True)
        self._tell(incoming, len(incoming.loan.hashes) - 1, "")
        self._core.release(incoming.request)

    def failed(self, number: int, why: str) -> None:
        if (incoming := self._incoming.get(number)) is not None:
            self._give_up(incoming, why)

    def lost(self, link: BorrowerLink, why: str) -> None:
        """A connection is gone, and what was to come over it."""
        for incoming in [one for one in self._incoming.values() if one.link is link]:
            link.forget(incoming.number)
            self._give_up(incoming, f"{link.peer} is gone: {why}")

    def _may_borrow(self, request: Request) -> bool:
        params = request.sampling_params
        is_long = request.first_len > max(self._min_tokens, self.own.card.block_size)
        wants_all = params.skip_reading_prefix_cache or params.prompt_logprobs is not None
        is_short_name = max(len(request.request_id), len(request.cache_salt or "")) <= MAX_TEXT
        return is_long and not wants_all and is_short_name and bool(self._links)

    def _ask(self, request: Request) -> bool:
        """Ask for the blocks that a held request has not found here. False: it is better off without."""
        (sequence,) = request.sequences
        cache, size = self._core.cache, self.own.card.block_size
        num_held = cache.find_prefix(sequence, sequence.num_tokens - 1).num_tokens // size
        num_blocks = (sequence.num_tokens - 1) // size
        if sequence.num_tokens - num_held * size < self._min_tokens or num_blocks <= num_held:
            return False
        ready = [link for link in self._links if link.is_ready]
        if not ready:
            self._tell_why(request, "; ".join(f"{link.peer} {link.state}" for link in self._links))
            return False
        link = min(ready, key=lambda one: one.num_asked)
        hashes = cache.tables[sequence.sequence_id].hashes[: num_blocks + 1]
        number = next(self._numbers)
        deadline = time.monotonic() + self._timeout_s
        incoming = Incoming(number, request, link, tuple(hashes), num_held, deadline)
        self._incoming[number] = self._of_request[request.request_id] = incoming
        link.num_asked += len(hashes)
        link.num_open += 1
        packed = pack_ids(sequence.token_ids[: num_blocks * size])
        link.ask(incoming, Fetch(number, request.request_id, packed, request.cache_salt, num_held))
        if self._events.is_on:
            text = f"transfer: {(num_blocks - num_held) * size:,} of its tokens are computed by {link.peer}"
            self._events.write(Waits(time.monotonic(), request.request_id, text))
        return True

    def _give_up(self, incoming: Incoming[BorrowerLink], why: str, *, tells: bool = False) -> None:
        """A request goes on without the blocks. tells: the peer does not know it yet."""
        self._forget(incoming)
        incoming.decide(None)
        if tells:
            incoming.link.send(Cancel(incoming.number))
        if incoming.loan is not None and not self._settle_abandoned(incoming):
            self._abandoned.append(incoming)
        self._tell(incoming, incoming.num_held, why)
        if incoming.request.sequences[0].finish_reason is None:
            self._core.release(incoming.request)

    def _settle_abandoned(self, incoming: Incoming[BorrowerLink]) -> bool:
        """Give borrowed blocks back. False: one is being written at this moment."""
        assert incoming.loan is not None, "it has blocks"
        if not incoming.stop_writing():
            return False
        self._loans.settle(incoming.loan, is_whole=False)
        return True

    def _forget(self, incoming: Incoming[BorrowerLink]) -> None:
        del self._incoming[incoming.number], self._of_request[incoming.request.request_id]
        incoming.link.num_asked -= len(incoming.hashes)
        incoming.link.num_open -= 1

    def _tell(self, incoming: Incoming[BorrowerLink], num_blocks: int, why: str) -> None:
        if self._events.is_on:
            now, size = time.monotonic(), self.own.card.block_size
            name, num_tokens = incoming.request.request_id, (num_blocks - incoming.num_held) * size
            num_bytes = 0 if why or incoming.loan is None else len(incoming.loan.block_ids) * self.own.card.block_bytes
            seconds = now - (incoming.deadline - self._timeout_s)
            self._events.write(BlocksCame(now, name, incoming.link.peer, num_tokens, num_bytes, seconds, why))

    def _tell_why(self, request: Request, why: str) -> None:
        """Nobody was asked."""
        if self._events.is_on:
            self._events.write(BlocksCame(time.monotonic(), request.request_id, "", 0, 0, 0.0, why))
