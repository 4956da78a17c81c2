"""Router: which of several engines a request goes to: the one that would have the least work with it.

    work of an engine    what its unfinished requests still have to compute, in prompt tokens
    a request adds       its prompt tokens that the engine does not hold, and DECODE_COST times its expected output

    engine 0   work 900, holds 800 of the prompt's 1000 tokens      900 + 200  ◀── least, although engine 1 is idler
    engine 1   work 400, holds none                                 400 + 1000

So a conversation stays where its beginning is, until that engine has more to do than the beginning saves. Equal engines
take turns. Two simpler ways, to compare with: `work` asks only which engine has the least work before the request, and
`turns` asks nothing.

What an engine holds is known from what was sent there: a prompt is cut into pieces, each named by a hash of all
tokens up to its end, and the engine's latest pieces are remembered, as many as its KV cache has room for. Pieces grow
with their distance from the start, so a prompt of any length has few, eight from one doubling to the next:

    piece ends    16 32 48 ... 128 | 144 ... 256 | 288 ... 512 | 576 ...

Front ends route, each by itself. An engine tells each of them what the others have sent it (`Load`, transport.py).
Until it tells again, the others are taken to send as this one does, in proportion to their work so far: else all would
run to the engine that last told of the least. The simulator routes with the same code.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from octavo.cache.blocks import Root, chain_hash
from octavo.config import DataParallelRouting
from octavo.request import Request

#: prompt tokens that take as long as one generated token; 2 on two CPU cores, 6 on an H100, both with full batches
DECODE_COST = 4
#: tokens; the expected output until answers have ended
FIRST_OUTPUT_LEN = 128
#: the weight of the last answer in the mean output length
_LEARNING_RATE = 0.05
#: the shortest piece, and into how many pieces a doubling is cut at most
_SHORTEST, _PER_DOUBLING = 16, 8
#: the most pieces remembered of an engine, about 300 bytes each
MAX_PIECES = 2**16
#: engines that hold a part of the prompt and are compared
_MAX_HOLDERS = 16


class Piece(NamedTuple):
    """A prompt's tokens up to `end`, by their hash."""

    end: int
    content: bytes


def prompt_pieces(request: Request) -> list[Piece]:
    """Where the router looks for a request's prompt, shortest first."""
    token_ids, content = request.prompt_token_ids, Root.of(request).hash()
    pieces, begin = [], 0
    while (end := begin + _piece_len(begin)) <= len(token_ids):
        content = chain_hash(content, token_ids[begin:end])
        pieces.append(Piece(end, content))
        begin = end
    return pieces


def _piece_len(begin: int) -> int:
    """A power of two, so that prompts of all lengths are cut at the same places."""
    return max(_SHORTEST, (1 << begin.bit_length() - 1) // _PER_DOUBLING if begin else 0)


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was sent to an engine, and the work that is left of it there: of its prompt, and of its output."""

    engine: int
    prompt_work: int
    output_work: int

    @property
    def work(self) -> int:
        return self.prompt_work + self.output_work


class Router:
    """Owner of what is known of the engines. One caller, one thread."""

    def __init__(self, num_engines: int, routing: DataParallelRouting = "prefix", first: int = 0) -> None:
        """first: of equal engines; routers that differ in it spread what they choose at once."""
        self._routing = routing
        self._work = [0] * num_engines
        self._told_work = [0] * num_engines  # of others, as this router was told
        self._all_told = 0  # their sum
        self._others_work = [0] * num_engines  # the part of an engine's work that others have sent or may have sent
        self._own_work = 0  # on all engines
        self._turns = [(engine - first) % num_engines - num_engines for engine in range(num_engines)]  # last chosen
        self._num_chosen = 0
        self._last_chosen = (first - 1) % num_engines
        self._holdings = [_Holding(0) for _ in range(num_engines)]
        self._holders: dict[bytes, list[int]] = {}
        self._is_up = [False] * num_engines
        self._by_work: list[tuple[int, int, int]] = []  # a heap of work, turn, engine; entries may be outdated
        self._output_len = float(FIRST_OUTPUT_LEN)

    def goes_up(self, engine: int, num_cache_tokens: int) -> None:
        """An engine serves from now on; it is idle and holds nothing. num_cache_tokens: what it can hold; 0: it caches
        no prefixes."""
        self.goes_down(engine)
        self._holdings[engine] = _Holding(num_cache_tokens)
        self._is_up[engine] = True
        self._change(engine, 0)

    def goes_down(self, engine: int) -> None:
        """An engine is gone, and with it what it holds. End its tickets first."""
        self._is_up[engine] = False
        self.forget(engine)
        self.others_work(engine, 0)
        self._work[engine] = 0

    def forget(self, engine: int) -> None:
        """An engine has emptied its prefix cache."""
        self._drop(engine, self._holdings[engine].clear())

    def choose(self, pieces: Sequence[Piece], request: Request) -> Ticket | None:
        """Send a request to the best engine, or to the one that it names. None: no engine serves, or not that one."""
        num_tokens, engine = request.num_prompt_tokens, request.data_parallel_rank
        if engine is None:
            cached = self._candidates(pieces)
        else:
            cached = {engine: self._num_cached(engine, pieces)} if self._is_up[engine] else {}
        if not cached:
            return None
        engine = min(cached, key=lambda one: (self._work[one] + num_tokens - cached[one], self._turns[one]))
        output_len = min(request.max_output_tokens, int(self._output_len) + 1)
        output_work = DECODE_COST * output_len * request.sampling_params.num_sequences
        ticket = Ticket(engine, max(num_tokens - cached[engine], 1), output_work)
        self._num_chosen += 1
        self._turns[engine], self._last_chosen = self._num_chosen, engine
        self.sees(engine, pieces)
        self._own_work += ticket.work
        likely = ticket.work * self._all_told // self._own_work
        self._others_work[engine] += likely
        self._change(engine, ticket.work + likely)
        return ticket

    def started(self, ticket: Ticket) -> None:
        """Its prompt is computed."""
        self._own_work -= ticket.prompt_work
        self._change(ticket.engine, -ticket.prompt_work)
        ticket.prompt_work = 0

    def ended(self, ticket: Ticket, num_output_tokens: int | None = None) -> None:
        """num_output_tokens: of one sequence that ended by itself; None: of none."""
        self._own_work -= ticket.work
        self._change(ticket.engine, -ticket.work)
        ticket.prompt_work = ticket.output_work = 0
        if num_output_tokens is not None:
            self._output_len += _LEARNING_RATE * (num_output_tokens - self._output_len)

    def sees(self, engine: int, pieces: Iterable[Piece]) -> None:
        """A prompt of these pieces was sent to an engine, by whomever."""
        new, gone = self._holdings[engine].add(pieces)
        for content in new:
            self._holders.setdefault(content, []).append(engine)
        self._drop(engine, gone)

    def others_work(self, engine: int, work: int) -> None:
        """The work that others than this router's owner have sent to an engine."""
        self._change(engine, work - self._others_work[engine])
        self._all_told += work - self._told_work[engine]
        self._others_work[engine] = self._told_work[engine] = work

    def work(self, engine: int) -> int:
        """Of an engine's unfinished requests, as far as this router knows or assumes."""
        return self._work[engine]

    def _candidates(self, pieces: Sequence[Piece]) -> dict[int, int]:
        """Engines to choose from -> how many of the prompt's tokens each holds. Empty: none serves."""
        if self._routing == "prefix":
            return self._cached_by_candidates(pieces)
        engine = self._least_loaded() if self._routing == "work" else self._next_in_turn()
        return {} if engine is None else {engine: self._num_cached(engine, pieces)}

    def _next_in_turn(self) -> int | None:
        num_engines = len(self._is_up)
        places = range(self._last_chosen + 1, self._last_chosen + 1 + num_engines)
        return next((place % num_engines for place in places if self._is_up[place % num_engines]), None)

    def _cached_by_candidates(self, pieces: Sequence[Piece]) -> dict[int, int]:
        """Engines that may be best -> how many of the prompt's tokens each holds: the one with the least work, and
        those that hold most."""
        cached: dict[int, int] = {}
        least = self._least_loaded()
        if least is not None:
            cached[least] = self._num_cached(least, pieces)
        for piece in reversed(pieces):
            for engine in self._holders.get(piece.content, ()):
                if len(cached) > _MAX_HOLDERS:
                    return cached
                cached.setdefault(engine, piece.end)
        return cached

    def _num_cached(self, engine: int, pieces: Sequence[Piece]) -> int:
        holding = self._holdings[engine]
        return next((piece.end for piece in reversed(pieces) if piece.content in holding), 0)

    def _drop(self, engine: int, contents: Iterable[bytes]) -> None:
        for content in contents:
            holders = self._holders[content]
            holders.remove(engine)
            if not holders:
                del self._holders[content]

    def _change(self, engine: int, work: int) -> None:
        self._work[engine] += work
        if not self._is_up[engine]:
            return
        if len(self._by_work) > 4 * len(self._work) + 64:
            self._by_work = [entry for entry in self._by_work if self._is_current(entry)]
            heapq.heapify(self._by_work)
        heapq.heappush(self._by_work, (self._work[engine], self._turns[engine], engine))

    def _least_loaded(self) -> int | None:
        while self._by_work and not self._is_current(self._by_work[0]):
            heapq.heappop(self._by_work)
        return self._by_work[0][2] if self._by_work else None

    def _is_current(self, entry: tuple[int, int, int]) -> bool:
        work, turn, engine = entry
        return self._is_up[engine] and (work, turn) == (self._work[engine], self._turns[engine])


class _Holding:
    """The pieces that one engine is taken to hold, least recently used first."""

    def __init__(self, num_cache_tokens: int) -> None:
        self._most_tokens = num_cache_tokens
        self._num_tokens = 0
        self._lens: OrderedDict[bytes, int] = OrderedDict()

    def __contains__(self, content: bytes) -> bool:
        return content in self._lens

    def add(self, pieces: Iterable[Piece]) -> tuple[list[bytes], list[bytes]]:
        """Use pieces of one prompt, shortest first -> those that are new, and those that made room."""
        if not self._most_tokens:
            return [], []
        lens, begin, new = self._lens, 0, []
        known = list(pieces)
        for piece in known:
            if piece.content not in lens:
                lens[piece.content] = piece.end - begin
                self._num_tokens += piece.end - begin
                new.append(piece.content)
            begin = piece.end
        for piece in reversed(known):  # a prompt's beginning is the last to be forgotten
            lens.move_to_end(piece.content)
        gone = []
        while self._num_tokens > self._most_tokens or len(lens) > MAX_PIECES:
            content, length = lens.popitem(last=False)
            self._num_tokens -= length
            gone.append(content)
        return new, gone

    def clear(self) -> list[bytes]:
        gone = list(self._lens)
        self._lens.clear()
        self._num_tokens = 0
        return gone
