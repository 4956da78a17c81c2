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
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from octavo.cache.kv_cache import KVCache
from octavo.messages import Candidates, LogprobRow, StepResult
from octavo.observe.event_log import EventLog
from octavo.observe.events import FirstToken
from octavo.request import Request, RequestId, Sequence, SequenceState
from octavo.sampling_params import SamplingParams
from octavo.scheduler.places import Places
from octavo.scheduler.step import NO_TOKEN_ENDING, Ending, PlanDraft, SequenceUpdate


class Step(NamedTuple):
    """The last token of a beam, as a chain through all of its tokens: beams share what they have in common."""

    before: Step | None
    row: LogprobRow


#: minus the log-probability of a whole beam, the beam that goes on, and the place of its next token among its best
Choice = tuple[float, int, int]


@dataclass(frozen=True, slots=True)
class FinishedBeam:
    score: float
    last: Step
    ending: Ending


@dataclass(slots=True, eq=False)
class BeamSearch:
    """One request's search. totals, lasts: by beam. finished: the best so far, best first. moves: parent and token of
    each beam, as chosen by the last step and not planned yet."""

    beams: list[Sequence]
    params: SamplingParams
    totals: list[float] = field(default_factory=lambda: [0.0])
    lasts: list[Step | None] = field(default_factory=lambda: [None])
    finished: list[FinishedBeam] = field(default_factory=list)
    moves: list[tuple[int, int]] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.params.num_sequences

    def score(self, total: float, length: int) -> float:
        return total / math.pow(length, self.params.length_penalty)

    def finish(self, beam: FinishedBeam) -> None:
        """Keep the best `width` finished beams; of equal ones the earlier."""
        self.finished.append(beam)
        self.finished.sort(key=lambda one: -one.score)
        del self.finished[self.width :]

    def is_over(self, best_total: float, length: int, max_len: int) -> bool:
        """Whether no running beam, the best of which has this log-probability, is to be followed any further."""
        if len(self.finished) < self.width:
            return False
        early = self.params.early_stopping
        if early is True:
            return True
        if early == "never" and self.params.length_penalty > 0.0:
            length = max_len
        return self.score(best_total, length) <= self.finished[-1].score

    def best_first(self, candidates: list[Candidates]) -> Iterator[Choice]:
        return heapq.merge(*(self._choices(beam, of_beam[1]) for beam, of_beam in enumerate(candidates)))

    def _choices(self, beam: int, logprobs: list[float]) -> Iterator[Choice]:
        total = self.totals[beam]
        return ((-total - logprob, beam, place) for place, logprob in enumerate(logprobs))

    def step(self, choice: Choice, candidates: list[Candidates]) -> Step:
        """The beam's last token with the log-probabilities that its request asks for."""
        _, beam, place = choice
        ids, logprobs = candidates[beam]
        num = self.params.logprobs or 0
        best = slice(0, len(ids) if num == -1 else num)
        return Step(
            self.lasts[beam], LogprobRow([ids[place], *ids[best]], [logprobs[place], *logprobs[best]], place + 1)
        )


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
            if sequence.state is SequenceState.RUNNING:
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
        first, params = request.sequences[0], request.sampling_params
        length, max_len = first.num_output_tokens + 1, first.max_len - request.num_prompt_tokens
        if length == 1:
            self._begin(request)
        search = self.searches[request.request_id]
        width, is_last, running = params.num_sequences, length == max_len, []
        for rank, choice in enumerate(search.best_first(candidates)):
            minus_total, beam, place = choice
            ending = _ending(request, candidates[beam][0][place], is_last=is_last)
            if ending is None:
                running.append(choice)
            elif rank < width:
                step = search.step(choice, candidates)
                search.finish(FinishedBeam(search.score(-minus_total, length), step, ending))
            if rank + 1 >= width and (is_last or len(running) == width):
                break
        if is_last or search.is_over(-running[0][0], length, max_len):
            return True
        assert len(running) == width, "as many candidates as beams and stop tokens were asked for"
        self._go_on(request, search, running, candidates)
        return False

    def _begin(self, request: Request) -> None:
        """The other beams begin as forks of the first, which has computed the prompt."""
        self._places.join(self._places.fork_one(request.sequences[0]))
        self.searches[request.request_id] = BeamSearch(request.sequences, request.sampling_params)
        if self._events.is_on:
            self._events.write(FirstToken(self._clock(), request.request_id))

    def _go_on(self, request: Request, search: BeamSearch, running: list[Choice], candidates: list[Candidates]) -> None:
        """Each beam's best choice stays in its place; the others go on in places that none survives in."""
        beams, others = request.sequences, []
        placed: dict[int, Choice] = {}
        for choice in running:
            if choice[1] in placed:
                others.append(choice)
            else:
                placed[choice[1]] = choice
        empty = [place for place in range(len(beams)) if place not in placed] if others else []
        for place, choice in zip(empty, others, strict=True):
            child, parent = beams[place], beams[choice[1]]
            if len(search.totals) > 1:  # else it was forked just now
                self._cache.fork_again(parent, child)
            child.token_ids, child.num_computed_tokens = list(parent.token_ids), parent.num_computed_tokens
            placed[place] = choice
        chosen = [placed[place] for place in range(len(beams))]
        search.lasts = [search.step(choice, candidates) for choice in chosen]
        search.totals = [-minus_total for minus_total, _, _ in chosen]
        search.moves = [(parent, candidates[parent][0][place]) for _, parent, place in chosen]
        for beam, (_, token_id) in zip(beams, search.moves, strict=True):
            beam.token_ids.append(token_id)

    def _end(self, request: Request, finish: Callable[[Sequence, Ending], None]) -> list[SequenceUpdate]:
        """The n best finished beams become the request's sequences."""
        search, num_returned = self.searches.pop(request.request_id), request.sampling_params.n
        updates = []
        for beam in request.sequences[num_returned:]:
            self._places.drop(beam)
        for beam, found in zip(request.sequences, search.finished[:num_returned], strict=False):
            rows = _rows_to(found.last)
            token_ids = [row.token_ids[0] for row in rows]
            self._cache.free(beam, "finished")
            beam.token_ids = request.prompt_token_ids + token_ids
            finish(beam, found.ending)
            updates.append(SequenceUpdate(beam, token_ids, rows))
        del request.sequences[num_returned:]
        return updates


def num_candidates(request: Request) -> int:
    """Enough for each beam to go on in as many ways as there are beams, even if all stop tokens are better."""
    params = request.sampling_params
    if params.logprobs == -1:
        return -1
    return max(params.num_sequences + len(request.stop_token_ids), params.logprobs or 0)


def _ending(request: Request, token_id: int, *, is_last: bool) -> Ending | None:
    """How a beam ends with this token. Stop tokens before min_tokens are banned, so none comes."""
    if token_id in request.stop_token_ids:
        is_end = token_id in request.eos_token_ids and not request.sampling_params.ignore_eos
        return "stop", None if is_end else token_id
    return ("length", None) if is_last else None


def _rows_to(last: Step | None) -> list[LogprobRow]:
    rows = []
    while last is not None:
        rows.append(last.row)
        last = last.before
    return rows[::-1]
