"""Tokens for a replay, from a log that has none: alike where the recorded ones were, as far as blocks tell.

    recorded    block x7f [The capital of ... ]   block 3c9 [ ... ]   and the rest
    replayed              [0 0 0 ... 0 5]                   [0 ... 0 9]       0 0 0

A block's hash includes all before it, so one token that belongs to the hash is enough. It is in the last slot: a prompt
may end in a block's middle, and the samples that go on from there differ only behind it. A log that begins with a
snapshot tells of blocks by what is in the prefix tree there, whose parents may be gone: such a one is given a name.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from itertools import count

from octavo.errors import LogError
from octavo.lora_request import LoadedAdapter, LoRARequest
from octavo.observe import events
from octavo.observe.events import Event
from octavo.observe.snapshot import Snapshot
from octavo.pooling_params import PoolingParams
from octavo.request import Request, Sequence
from octavo.sampling_params import SamplingParams
from octavo.simulator.replayed_beams import END, FILLER, ReplayedBeams

_FIRST_OWN = 2  # no filler, and no end


class ReplayedTokens:
    """corrupted: sequences that ended because nothing could be drawn. beams: what beam searches chose. most_tokens: of
    a sequence."""

    def __init__(self, block_size: int, most_tokens: int) -> None:
        self._block_size = block_size
        self.most_tokens = most_tokens
        self._numbers = count(_FIRST_OWN)
        self._token_of: dict[bytes, int] = {}
        self._content: dict[int, bytes] = {}  # block -> what it holds at this moment of the log
        self._chains: dict[int, dict[int, bytes]] = {}  # sequence -> place of a block -> its content
        self._before: dict[bytes, bytes] = {}
        self._stops: dict[int, int] = {}  # sequence -> how many tokens it had drawn when one stopped it
        self._asked: set[int] = set()  # sequences that were ended from outside
        self._all_of: set[str] = set()
        self.corrupted: set[int] = set()
        self.beams = ReplayedBeams()

    # Reading the log

    def learn(self, event: Event) -> None:
        self.beams.learn(event)
        if type(event) is events.BlocksCame and event.num_tokens:
            raise LogError(
                f"request {event.request_id!r} got blocks from another engine, which no replay can: no replay"
            )
        if type(event) is events.BlocksPublished:
            chain = self._chains.setdefault(event.sequence_id, {})
            before = chain.get(event.first - 1, self._content.get(event.parent, b"")) if event.first else b""
            for place, (block_id, content) in enumerate(zip(event.block_ids, event.hashes, strict=False), event.first):
                self._follows(content, before)
                self._content[block_id] = chain[place] = before = content
        elif type(event) is Snapshot:
            self._learn_all(event)
        elif type(event) is events.PrefixHit and event.block_ids:
            place = event.num_tokens // self._block_size - 1
            last = self._content.get(event.block_ids[-1])
            if last is not None:
                self._chains.setdefault(event.sequence_id, {})[place] = last
        elif type(event) is events.SoughtInVain:
            self._chains.setdefault(event.sequence_id, {}).update(enumerate(event.hashes))
        elif type(event) is events.EndAsked:
            self._asked.add(event.sequence_id)
            if event.sequence_id < 0:
                self._all_of.add(event.request_id)
        elif type(event) is events.Finished:
            if event.is_corrupted:
                self.corrupted.add(event.sequence_id)
            elif event.reason in ("stop", "repetition") and event.sequence_id not in self._asked:
                self._stops[event.sequence_id] = event.num_output_tokens

    def _learn_all(self, event: Snapshot) -> None:
        found = dict[int, bytes]()
        for block_id, (_, depth, content, parent) in zip(event.tree_blocks, event.tree_nodes, strict=False):
            found[block_id] = content
            self._follows(content, parent if depth else b"")
        self._content |= found
        for one in event.sequences:
            chain = self._chains.setdefault(one.sequence_id, {})
            for table in one.tables:
                chain |= {place: found[block_id] for place, block_id in enumerate(table) if block_id in found}

    def _follows(self, content: bytes, before: bytes) -> None:
        self._before[content] = self._before.get(content) or before

    # Making what was recorded

    def first_tokens(self, sequence_id: int, num_tokens: int) -> list[int]:
        return [self._token(sequence_id, position) for position in range(num_tokens)]

    def of_block(self, content: bytes) -> list[int]:
        """A block's tokens."""
        return [FILLER] * (self._block_size - 1) + [self._token_of.setdefault(content, next(self._numbers))]

    def before(self, content: bytes) -> bytes:
        """What is in the block before this one, which is not a sequence's first."""
        return self._before.get(content) or blake2b(content, digest_size=8, person=b"before").digest()

    def request(self, event: events.Arrived) -> Request:
        ids = range(event.sequence_id, event.sequence_id + (0 if event.num_beams else event.num_sequences))
        ends = {
            self._last_token(one, event.num_prompt_tokens + self._stops[one] - 1) for one in ids if one in self._stops
        }
        params = SamplingParams(
            n=event.num_sequences,
            max_tokens=event.max_tokens or 1,
            min_tokens=min(event.min_tokens, event.max_tokens),
            prompt_logprobs=0 if event.has_prompt_logprobs else None,
            skip_reading_prefix_cache=event.is_fresh,
        )
        if event.num_beams:
            params = params.replace(use_beam_search=True, best_of=event.num_beams, early_stopping="never")
        return Request(
            request_id=event.request_id,
            prompt_token_ids=self.first_tokens(event.sequence_id, event.num_prompt_tokens),
            sampling_params=params,
            seed=0,
            arrival_time=0.0,
            max_output_tokens=event.max_tokens,
            priority=event.priority,
            stop_token_ids=frozenset(ends or ({END} if event.can_stop else ())),
            adapter=_adapter(event),
            pooling_params=None if event.max_tokens else PoolingParams(),
        )

    def drawn(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """The next tokens of a sequence."""
        name, begin = sequence.sequence_id, sequence.num_tokens
        end = self._stops.get(name, -1) + sequence.request.num_prompt_tokens
        return [
            self._last_token(name, place) if place + 1 == end else self._token(name, place)
            for place in range(begin, begin + num_tokens)
        ]

    def settle_beams(self, sequences: Iterable[Sequence]) -> None:
        """Before their blocks are entered into the prefix tree: give beams the tokens of the recorded ones. A beam goes
        on from others, so what it drew says too little."""
        size = self._block_size
        for one in sequences:
            if one.request.sampling_params.use_beam_search:
                num_full = one.num_tokens // size
                for place in range(max(one.request.num_prompt_tokens // size, num_full - 2), num_full):
                    content = self.beams.content(one.sequence_id, place)
                    if content is not None:
                        one.token_ids[place * size + size - 1] = self._token_of.setdefault(content, next(self._numbers))

    def _last_token(self, sequence_id: int, position: int) -> int:
        return self._token(sequence_id, position) or END

    def _token(self, sequence_id: int, position: int) -> int:
        place, offset = divmod(position, self._block_size)
        if offset != self._block_size - 1:
            return FILLER
        chain = self._chains.setdefault(sequence_id, {})
        if place not in chain:
            self._fill(chain)
        content = chain.setdefault(place, b"%d of %d" % (place, sequence_id))  # never seen: like no other
        return self._token_of.setdefault(content, next(self._numbers))

    def _fill(self, chain: dict[int, bytes]) -> None:
        """A block that was found tells of those before it."""
        most = self.most_tokens // self._block_size
        for place in sorted((place for place in chain if 0 <= place <= most), reverse=True):
            content = chain[place]
            while place:
                content, place = self.before(content), place - 1
                if chain.setdefault(place, content) != content:
                    break


def _adapter(event: events.Arrived) -> LoadedAdapter | None:
    """One with the same number; its blocks are its own, as its content may be."""
    if not event.adapter_key:
        return None
    return LoadedAdapter(event.adapter_key, str(event.adapter_key), LoRARequest(event.adapter or "?", 1))


def tokens_of_log(log: Iterable[Event], block_size: int, most_tokens: int) -> ReplayedTokens:
    tokens = ReplayedTokens(max(1, block_size), most_tokens)
    for event in log:
        tokens.learn(event)
    return tokens
