"""Candidates for a replay of beam searches, from a log that has none: those that lead to what was chosen.

    recorded     beam 2 went on from beam 0 (Forked), the search ended with answers of 9 and 7 tokens (Finished)
    replayed     beam 0 offers two tokens, beam 2 none; at lengths 7 and 9 a stop token is among the best

The real search then chooses the same. A replayed one runs with early_stopping="never", and a running beam's score is
just good enough to go on until the step in which the recorded search ended.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from typing import NamedTuple

from octavo.errors import LogError
from octavo.messages import Candidates
from octavo.observe import events
from octavo.observe.events import Event
from octavo.request import Request, Sequence
from octavo.sampling_params import MAX_N

#: what is drawn: one that goes on, and one that ends an answer
FILLER, END = 0, 1
_FAR = 1 << 24  # from 0, for scores that differ by whole numbers; more than the tokens of any answer
_NEVER = -1e30  # the log-probability of what no search reaches


class _Offer(NamedTuple):
    """A token of a beam. minus_total: minus the answer's score with it, times its length."""

    minus_total: float
    beam: int
    token_id: int


class ReplayedBeams:
    """Learns from a whole log, and then follows it once more, from step to step."""

    def __init__(self) -> None:
        self._requests: set[str] = set()
        self._finals: dict[str, list[tuple[int, str]]] = {}  # request -> length and reason of each answer, best first
        self._contents: dict[tuple[int, int], deque[bytes]] = defaultdict(deque)  # sequence, place -> as they follow
        self._searching: set[int] = set()
        self._totals: dict[str, list[float]] = {}
        self._moves: dict[str, list[tuple[int, int]]] = {}  # since the last plan: parent and child of each fork
        self._ended: dict[str, bool] = {}  # since then -> whether for want of a token

    def learn(self, event: Event) -> None:
        if type(event) is events.Arrived and event.num_beams:
            if not 0 < event.num_beams <= MAX_N:
                raise LogError(f"request {event.request_id!r} has {event.num_beams:,} beams, allowed are up to {MAX_N}")
            self._requests.add(event.request_id)
            self._searching.update(range(event.sequence_id, event.sequence_id + event.num_beams))
        elif type(event) is events.Finished and event.request_id in self._requests:
            if event.reason in ("stop", "length"):
                self._finals.setdefault(event.request_id, []).append((event.num_output_tokens, event.reason))
        elif type(event) is events.BlocksPublished and event.sequence_id in self._searching and not event.group:
            for place, content in enumerate(event.hashes, event.first):
                self._contents[event.sequence_id, place].append(content)

    def follow(self, event: Event) -> None:
        """What the recorded search chose stands between a plan and the end of the step before it."""
        if type(event) is events.Scheduled:
            self._moves, self._ended = {}, {}
        elif type(event) is events.Forked:
            self._moves.setdefault(event.request_id, []).append((event.parent_id, event.sequence_id))
        elif type(event) is events.Finished:
            self._ended[event.request_id] = event.is_corrupted

    # What the blocks of beams hold

    def content(self, sequence_id: int, place: int) -> bytes | None:
        """Of the block that the sequence enters next into the prefix tree at this place; None: none."""
        contents = self._contents.get((sequence_id, place))
        return contents[0] if contents else None

    def published(self, event: events.BlocksPublished) -> None:
        """The replay did it."""
        for place in range(event.first, event.first + len(event.block_ids)):
            contents = self._contents.get((event.sequence_id, place))
            if contents and not event.group:
                contents.popleft()

    # What is offered

    def candidates(self, beams: list[Sequence]) -> list[Candidates]:
        """For each beam of a request that a step computed."""
        request = beams[0].request
        if self._ended.get(request.request_id):
            return [([FILLER], [math.nan]) for _ in beams]
        length, max_len = beams[0].num_output_tokens + 1, beams[0].max_len - request.num_prompt_tokens
        totals = self._totals.get(request.request_id, []) if length > 1 else [0.0]
        ending = self._ending(request, length, max_len)
        going_on = self._going_on(request, length, max_len)
        offers = sorted(ending + going_on)
        lists = []
        for beam, total in enumerate(totals):
            own = [(token_id, -minus_total - total) for minus_total, place, token_id in offers if place == beam]
            own = own or [(FILLER, _NEVER)]
            lists.append(([token_id for token_id, _ in own], [logprob for _, logprob in own]))
        return lists

    def _ending(self, request: Request, length: int, max_len: int) -> list[_Offer]:
        """The answers of this length that will be returned; in the last step also those that nobody asks for."""
        name, width = request.request_id, request.sampling_params.num_sequences
        finals = list(enumerate(self._finals.get(name, ())))
        kept = [(rank, reason) for rank, (num_tokens, reason) in finals if num_tokens == length]
        if name in self._ended:
            kept += [(rank, "length" if length == max_len else "stop") for rank in range(len(finals), width)]
        return [_Offer(length * (_FAR + rank), 0, END if reason == "stop" else FILLER) for rank, reason in kept]

    def _going_on(self, request: Request, length: int, max_len: int) -> list[_Offer]:
        """One for each beam: those that stay in their places first, then the forks."""
        name, width = request.request_id, request.sampling_params.num_sequences
        parents = [0] * width if length == 1 else self._parents(request)
        order = sorted(range(width), key=lambda child: (parents[child] != child, child))
        first = length * (_FAR + width)
        if name in self._ended:
            first = 2 * max_len * (_FAR + width)  # none is worth going on
        self._totals[name] = [0.0] * width
        for rank, child in enumerate(order):
            self._totals[name][child] = -(first + rank)
        return [_Offer(first + rank, parents[child], FILLER) for rank, child in enumerate(order)]

    def _parents(self, request: Request) -> list[int]:
        places: dict[int, int] = {beam.sequence_id: place for place, beam in enumerate(request.sequences)}
        parents = list(range(len(request.sequences)))
        for parent_id, child_id in self._moves.get(request.request_id, []):
            if parent_id in places and child_id in places:
                parents[places[child_id]] = places[parent_id]
        return parents
