"""BlockLender: a prefill engine's side. It computes prompts for decode engines, and hands them the blocks.

    Fetch ──▶ a request of one token, that nobody reads ──▶ its blocks on loan ──▶ read, chunk by chunk ──▶ Done
              in the engine, like any other                 held in the pool       on the connection's own thread

All it does on the engine's thread is to add requests and look blocks up. A decode engine that does not read holds up
its own connection alone, and loses it after 30 s.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from octavo.cache.block_loans import Loan
from octavo.cache.blocks import ContentHash, Root, chain_hash
from octavo.errors import OctavoError
from octavo.observe.logging import LOGGER
from octavo.processes.block_door import admit, listen
from octavo.processes.block_messages import MAX_TEXT, TO_LENDER, BadMessageError, BlockCard, Failed, Fetch, unpack_ids
from octavo.processes.block_wire import Wire
from octavo.processes.household import UNIX
from octavo.processes.lender_link import LenderLink
from octavo.processes.own_blocks import OwnBlocks
from octavo.request import Request, Sequence
from octavo.sampling_params import SamplingParams

#: connections that have not proved themselves yet
_MOST_STRANGERS = 16


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A prompt that is being computed for another engine."""

    link: LenderLink
    number: int
    num_held: int


class BlockLender:
    """Owner of the listening socket and the connections. All calls must come from the engine's thread."""

    def __init__(self, address: str, own: OwnBlocks, vocab_size: int) -> None:
        self.own = own
        self._core, self._loans, self._vocab_size = own.core, own.loans, vocab_size
        self._wanted: dict[str, _Wanted] = {}
        self._numbers = itertools.count()
        self._links: set[LenderLink] = set()
        self._strangers = threading.Semaphore(_MOST_STRANGERS)
        self._told = ""
        self._is_local = address.startswith(UNIX)
        self._listener = listen(address)
        threading.Thread(target=self._accept, name="octavo-blocks", daemon=True).start()

    def fetch(self, link: LenderLink, message: Fetch) -> None:
        """Compute a prompt whose blocks are asked for."""
        try:
            request = self._request(message)
            self._core.add_request(request)
        except (BadMessageError, OctavoError) as refusal:
            link.say(Failed(message.number, str(refusal)))
            return
        self._wanted[request.request_id] = _Wanted(link, message.number, message.num_held)

    def cancel(self, link: LenderLink, number: int | None) -> None:
        """Abort one of a link's prompts, or all."""
        for name, wanted in list(self._wanted.items()):
            if wanted.link is link and number in (None, wanted.number):
                del self._wanted[name]
                self._core.abort(name)
                link.say(Failed(wanted.number, "it was given up"))

    def gone(self, link: LenderLink) -> None:
        self._links.discard(link)
        self.cancel(link, None)
        link.stop()

    def came(self, link: LenderLink) -> None:
        self._links.add(link)

    def ended(self, sequence: Sequence) -> None:
        """A sequence that no front end waits for has ended."""
        wanted = self._wanted.pop(sequence.request.request_id, None)
        if wanted is None:
            return
        if sequence.finish_reason not in ("length", "stop"):
            wanted.link.say(Failed(wanted.number, f"it was not computed: {sequence.stop_reason}"))
            return
        loan = self._loans.lend(self._hashes(sequence.request), wanted.num_held)
        if loan is None:
            wanted.link.say(Failed(wanted.number, "its blocks were evicted as soon as they were computed"))
        else:
            wanted.link.hand_over(wanted.number, loan, self.own.mover.fence())

    def settle(self, loan: Loan) -> None:
        self._loans.settle(loan, is_whole=True)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in self._links:
            link.close()

    def _accept(self) -> None:
        while True:
            try:
                end, _ = self._listener.accept()
            except OSError:
                return  # closed
            if not self._strangers.acquire(blocking=False):
                end.close()
                continue
            threading.Thread(target=self._serve, args=(end,), name="octavo-blocks", daemon=True).start()

    def _serve(self, end: socket.socket) -> None:
        """A connection's thread, which reads."""
        wire = Wire(end)
        try:
            is_known = admit(end, self.own.secret)
            card = wire.receive(TO_LENDER) if is_known else None
        except (OSError, EOFError, BadMessageError):
            card = None
        finally:
            self._strangers.release()
        if not isinstance(card, BlockCard):
            LOGGER.warning("a connection that does not know the secret, or is no engine's, was closed")
            wire.close()
            return
        link = LenderLink(wire, self)
        if (why := self.own.card.why_not(card)) is not None:
            link.refuse(f"the prefill engine refused: {card.why_not(self.own.card)}")
            if why != self._told:  # it tries again and again
                LOGGER.error("a decode engine was refused: %s", why)
            self._told = why
            return
        self.own.post(partial(self.came, link))
        link.run(is_local=self._is_local)

    def _request(self, message: Fetch) -> Request:
        token_ids, size = unpack_ids(message.token_ids), self.own.card.block_size
        if not token_ids or len(token_ids) % size or not 0 <= message.num_held < len(token_ids) // size:
            raise BadMessageError(f"{len(token_ids)} tokens are no full blocks of {size}, or are held already")
        if not 0 <= min(token_ids) <= max(token_ids) < self._vocab_size:
            raise BadMessageError(f"a token is not below {self._vocab_size}, the size of the vocabulary")
        if max(len(message.request_id), len(message.salt or "")) > MAX_TEXT:
            raise BadMessageError(f"a name or salt is longer than {MAX_TEXT} characters")
        return Request(
            request_id=f"{message.request_id}-prefill-{next(self._numbers)}",
            prompt_token_ids=token_ids,
            sampling_params=SamplingParams(temperature=0.0, max_tokens=1),
            seed=0,
            arrival_time=time.monotonic(),
            max_output_tokens=1,
            cache_salt=message.salt,
        )

    def _hashes(self, request: Request) -> list[ContentHash]:
        token_ids, size = request.prompt_token_ids, self.own.card.block_size
        hashes = [Root.of(request).hash()]
        for begin in range(0, len(token_ids), size):
            hashes.append(chain_hash(hashes[-1], token_ids[begin : begin + size]))
        return hashes
