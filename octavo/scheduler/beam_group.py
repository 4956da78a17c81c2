"""The beams of one request that compete with each other: how good each of their choices is, and when their search ends.

In a diverse search (Vijayakumar et al., 2016) groups choose one after another, each as a search of its own, with a
penalty on tokens that beams of earlier groups have chosen in the same step; a beam's score has its penalties. A group
whose search is over steers no other, and computes on until all are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from octavo.messages import Candidates, LogprobRow
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.scheduler.step import Ending


class Step(NamedTuple):
    """The last token of a beam, as a chain through all of its tokens: beams share what they have in common."""

    before: Step | None
    row: LogprobRow


#: minus the score of a whole beam, the beam that goes on, and the place of its next token among its best
Choice = tuple[float, int, int]


@dataclass(frozen=True, slots=True)
class FinishedBeam:
    score: float
    last: Step
    ending: Ending


@dataclass(slots=True, eq=False)
class BeamGroup:
    """The beams of one request that compete with each other: all of them, or a group of a diverse search.

    first, width: its places among the request's beams. totals, lasts: by beam; one beam before the first choice.
    finished: the best so far, best first. is_over: its beams go on only beside those of other groups.
    """

    params: SamplingParams
    first: int
    width: int
    totals: list[float] = field(default_factory=lambda: [0.0])
    lasts: list[Step | None] = field(default_factory=lambda: [None])
    finished: list[FinishedBeam] = field(default_factory=list)
    is_over: bool = False

    def score(self, total: float, length: int) -> float:
        return total / math.pow(length, self.params.length_penalty)

    def finish(self, beam: FinishedBeam) -> None:
        """Keep the best `width` finished beams; of equal ones the earlier."""
        self.finished.append(beam)
        self.finished.sort(key=lambda one: -one.score)
        del self.finished[self.width :]

    def ends(self, best_total: float, length: int, max_len: int) -> bool:
        """Whether no running beam, the best of which has this score, is to be followed any further."""
        if len(self.finished) < self.width:
            return False
        early = self.params.early_stopping
        if early is True:
            return True
        if early == "never" and self.params.length_penalty > 0.0:
            length = max_len
        return self.score(best_total, length) <= self.finished[-1].score

    def choose(
        self,
        request: Request,
        candidates: list[Candidates],
        chosen: Mapping[int, int],
        length: int,
        max_len: int,
    ) -> list[Choice]:
        """The choices that end no answer, best first, once those that end one are kept."""
        width, is_last, running = self.width, length == max_len, []
        for rank, choice in enumerate(self.best_first(candidates, chosen)):
            minus_total, beam, place = choice
            ending = _ending(request, candidates[beam][0][place], is_last=is_last)
            if ending is None:
                running.append(choice)
            elif rank < width and not self.is_over:
                score = self.score(-minus_total, length)
                self.finish(FinishedBeam(score, self.step(choice, candidates), ending))
            if rank + 1 >= width and (is_last or len(running) == width):
                break
        self.is_over = self.is_over or is_last or self.ends(-running[0][0], length, max_len)
        assert is_last or len(running) == width, "as many candidates as beams and stop tokens were asked for"
        return running

    def best_first(self, candidates: list[Candidates], chosen: Mapping[int, int]) -> Iterator[Choice]:
        """chosen: how often earlier groups have chosen a token in this step."""
        choices = self._penalised if chosen else self._choices
        return heapq.merge(*(choices(beam, of_beam, chosen) for beam, of_beam in enumerate(candidates)))

    def _choices(self, beam: int, candidates: Candidates, _: Mapping[int, int]) -> Iterator[Choice]:
        total = self.totals[beam]
        return ((-total - logprob, beam, place) for place, logprob in enumerate(candidates[1]))

    def _penalised(self, beam: int, candidates: Candidates, chosen: Mapping[int, int]) -> Iterator[Choice]:
        total, penalty = self.totals[beam], self.params.diversity_penalty
        scored = zip(*candidates, strict=True)
        return iter(
            sorted(
                (-total - logprob + penalty * chosen.get(token_id, 0), beam, place)
                for place, (token_id, logprob) in enumerate(scored)
            )
        )

    def step(self, choice: Choice, candidates: list[Candidates]) -> Step:
        """The beam's last token with the log-probabilities that its request asks for."""
        _, beam, place = choice
        ids, logprobs = candidates[beam]
        num = self.params.logprobs or 0
        best = slice(0, len(ids) if num == -1 else num)
        return Step(
            self.lasts[beam], LogprobRow([ids[place], *ids[best]], [logprobs[place], *logprobs[best]], place + 1)
        )

    def placed(self, running: list[Choice], is_first: bool) -> list[Choice]:
        """The choices that go on, by place in the group: each beam's best one stays in its place, the others go to
        places that none survives in. is_first: all go on from one beam."""
        stay: dict[int, Choice] = {}
        others = []
        for choice in running:
            if choice[1] in stay or (is_first and self.first):
                others.append(choice)
            else:
                stay[choice[1]] = choice
        empty = [place for place in range(self.width) if place not in stay] if others else []
        stay.update(zip(empty, others, strict=True))
        return [stay[place] for place in range(self.width)]


def _ending(request: Request, token_id: int, *, is_last: bool) -> Ending | None:
    """How a beam ends with this token. Stop tokens before min_tokens are banned, so none comes."""
    if token_id in request.stop_token_ids:
        is_end = token_id in request.eos_token_ids and not request.sampling_params.ignore_eos
        return "stop", None if is_end else token_id
    return ("length", None) if is_last else None
