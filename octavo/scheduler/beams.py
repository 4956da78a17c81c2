"""Beam search: which beams of a request go on, which end, and when the search does.

    beam 0   a b │ c  -0.9 │ d  -1.4 │ end -1.5       each beam's best next tokens, with the log-probability of the
    beam 1   a x │ y  -1.2 │ z  -2.0 │ ...            whole answer; width 2

    best first: 0c  1y  0d  0end ...                  the first two that end no answer go on: 0c, 1y
                                                      an end among the first two would be a finished beam

Each beam is a sequence with a row and block tables. One whose best continuation survives keeps them; one that none
survives of becomes a fork of another, which shares all blocks and copies the last one when it is written. So no prefix
is computed again, and no request is sent twice. What survived is planned with the request's next step.

A finished beam's score is its log-probability, divided by its length to the power of length_penalty. The choices are
those of transformers' beam search.

Groups of a diverse search choose one after another (beam_group.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from octavo.cache.kv_cache import KVCache
from octavo.messages import Candidates, LogprobRow, StepResult
from octavo.observe.event_log import EventLog
from octavo.observe.events import FirstToken
from octavo.request import Request, RequestId, Sequence, SequenceState
from octavo.scheduler.beam_group import BeamGroup, Choice, Step
from octavo.scheduler.places import Places
from octavo.scheduler.step import NO_TOKEN_ENDING, Ending, PlanDraft, SequenceUpdate


@dataclass(slots=True, eq=False)
class BeamSearch:
    """One request's search. moves: parent and token of each beam, as chosen by the last step and not planned yet."""

    beams: list[Sequence]
    groups: list[BeamGroup]
    moves: list[tuple[int, int]] = field(default_factory=list)


class Beams:
    """Owner of all searches. A preempted one stays until its request begins again, or ends."""

    def __init__(self, places: Places, cache: KVCache, events: EventLog, clock: Callable[[], float]) -> None:
        self._places = places
        self._cache = cache
        self._events = events
        self._clock = clock
        self.searches: dict[RequestId, BeamSearch] = {}

    def ask(self, draft: PlanDraft) -> None:
        """Where a prompt's last token is computed, ask for the best tokens in place of a draw."""
        for entry, sequence in enumerate(draft.granted):
            params = sequence.request.sampling_params
            if params.use_beam_search and draft.num_logits[entry]:
                draft.num_logits[entry] = draft.num_draws[entry] = 0
                draft.candidates[entry] = num_candidates(sequence.request)

    def announce(self, draft: PlanDraft) -> None:
        """Tell the worker what was chosen since the last plan."""
        for name in self._places.searching:
            search = self.searches[name]
            if not search.moves:
                continue
            beams, moves, search.moves = search.beams, search.moves, []
            self._places.seat(beams)
            draft.beam_rows += [beam.row for beam in beams]
            draft.beam_parents += [beams[parent].row for parent, _ in moves]
            draft.beam_token_ids += [token_id for _, token_id in moves]

    def choose(
        self, draft: PlanDraft, result: StepResult, finish: Callable[[Sequence, Ending], None]
    ) -> list[SequenceUpdate]:
        """Choose the beams that go on, for every request whose candidates have come -> the answers of those whose
        search is over. finish: ends a sequence."""
        of_request: dict[RequestId, list[Candidates]] = {}
        requests: dict[RequestId, Request] = {}
        for entry, candidates in result.candidates.items():
            sequence = draft.granted[entry]
            if sequence.state is SequenceState.RUNNING and sequence not in draft.outdated:
                requests[sequence.request.request_id] = sequence.request
                of_request.setdefault(sequence.request.request_id, []).append(candidates)
        updates: list[SequenceUpdate] = []
        for name, request in requests.items():
            if any(math.isnan(logprobs[0]) for _, logprobs in of_request[name]):
                self._places.unfork(request)
                finish(request.sequences[0], NO_TOKEN_ENDING)
                updates.append(SequenceUpdate(request.sequences[0], []))
            elif self._choose(request, of_request[name]):
                updates += self._end(request, finish)
        return updates

    def _choose(self, request: Request, candidates: list[Candidates]) -> bool:
        """False: the search goes on."""
        first = request.sequences[0]
        length, max_len = first.num_output_tokens + 1, first.max_len - request.num_prompt_tokens
        if length == 1:
            self._begin(request)
        search, chosen = self.searches[request.request_id], Counter[int]()
        going_on: list[tuple[BeamGroup, list[Candidates], list[Choice]]] = []
        for group in search.groups:
            own = candidates if length == 1 else candidates[group.first : group.first + group.width]
            steers = not group.is_over and len(search.groups) > 1
            running = group.choose(request, own, chosen, length, max_len)
            if steers:
                chosen.update(own[beam][0][place] for _, beam, place in running)
            going_on.append((group, own, running))
        if all(group.is_over for group in search.groups):
            return True
        self._go_on(request, search, going_on, is_first=length == 1)
        return False

    def _begin(self, request: Request) -> None:
        """The other beams begin as forks of the first, which has computed the prompt."""
        self._places.join(self._places.fork_one(request.sequences[0]))
        params = request.sampling_params
        width = params.num_sequences // params.num_beam_groups
        groups = [BeamGroup(params, first, width) for first in range(0, params.num_sequences, width)]
        self.searches[request.request_id] = BeamSearch(request.sequences, groups)
        if self._events.is_on:
            self._events.write(FirstToken(self._clock(), request.request_id))

    def _go_on(
        self,
        request: Request,
        search: BeamSearch,
        going_on: list[tuple[BeamGroup, list[Candidates], list[Choice]]],
        *,
        is_first: bool,
    ) -> None:
        """Beams take their chosen tokens; those that go on from another become its forks."""
        beams, moves = request.sequences, []
        for group, candidates, running in going_on:
            chosen = group.placed(running, is_first)
            before = 0 if is_first else group.first
            moves += [(before + beam, candidates[beam][0][at]) for _, beam, at in chosen]
            group.lasts = [group.step(choice, candidates) for choice in chosen]
            group.totals = [-minus_total for minus_total, _, _ in chosen]
        for child, (place, _) in zip(beams, moves, strict=True):
            parent = beams[place]
            if parent is not child:
                if not is_first:  # else it was forked just now
                    self._cache.fork_again(parent, child)
                child.token_ids, child.num_computed_tokens = list(parent.token_ids), parent.num_computed_tokens
        for beam, (_, token_id) in zip(beams, moves, strict=True):
            beam.token_ids.append(token_id)
        search.moves = moves

    def _end(self, request: Request, finish: Callable[[Sequence, Ending], None]) -> list[SequenceUpdate]:
        """The n best finished beams become the request's sequences."""
        search, num_returned = self.searches.pop(request.request_id), request.sampling_params.n
        updates = []
        for beam in request.sequences[num_returned:]:
            self._places.drop(beam)
        finished = [one for group in search.groups for one in group.finished]
        finished.sort(key=lambda one: -one.score)
        for beam, found in zip(request.sequences, finished[:num_returned], strict=False):
            rows = _rows_to(found.last)
            token_ids = [row.token_ids[0] for row in rows]
            self._cache.free(beam, "finished")
            beam.token_ids = request.prompt_token_ids + token_ids
            finish(beam, found.ending)
            updates.append(SequenceUpdate(beam, token_ids, rows))
        del request.sequences[num_returned:]
        return updates


def num_candidates(request: Request) -> int:
    """Enough for each beam to go on in as many ways as there are beams, even if all stop tokens are better. That is
    enough for groups, too: a group of them, and as many tokens as other groups may have chosen."""
    params = request.sampling_params
    if params.logprobs == -1:
        return -1
    return max(params.num_sequences + len(request.stop_token_ids), params.logprobs or 0)


def _rows_to(last: Step | None) -> list[LogprobRow]:
    rows = []
    while last is not None:
        rows.append(last.row)
        last = last.before
    return rows[::-1]
