"""Durations from the event log: the timeline of each request, the gaps between tokens, and histogram counts of them.

    arrival ──queue──▶ start ──prefill──▶ first token ──decode──▶ end
            └────────────── TTFT ──────────────┘
                       └────────────── inference ──────────────┘

Metrics and traces both read these timelines. A request ends with the last of its sequences.

prometheus_client's Histogram takes a lock and a bucket search per observation: most of a millisecond for 256 sequences.
Here all sequences with the same gap, nearly always all of a step, cost one search.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from octavo.observe.events import Arrived, Event, Finished, FirstToken, Forked, Preempted, PrefixHit, Started, Unforked
from octavo.observe.exposition import Sample


@dataclass(slots=True)
class SequenceEnd:
    """How one sequence of a request ended."""

    time: float
    reason: str
    num_output_tokens: int


@dataclass(slots=True)
class RequestLife:
    """One request. Times are of the engine's clock; None: not reached yet, or the request ended before."""

    request_id: str
    arrival: float
    num_prompt_tokens: int
    num_sequences: int  # asked for; if it ends early, fewer have lived
    max_tokens: int
    temperature: float
    top_p: float
    start: float | None = None
    first_token: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_live: int = 1  # the others fork from the first
    adapter: str = ""
    ends: list[SequenceEnd] = field(default_factory=list)

    @property
    def end(self) -> float:
        """Of its last sequence."""
        return self.ends[-1].time

    @property
    def queue_s(self) -> float | None:
        return between(self.arrival, self.start)

    @property
    def prefill_s(self) -> float | None:
        return between(self.start, self.first_token)

    @property
    def ttft_s(self) -> float | None:
        return between(self.arrival, self.first_token)

    @property
    def decode_s(self) -> float | None:
        return between(self.first_token, self.end)

    @property
    def inference_s(self) -> float | None:
        return between(self.start, self.end)

    @property
    def e2e_s(self) -> float:
        return self.end - self.arrival

    @property
    def num_output_tokens(self) -> int:
        """Of all its sequences."""
        return sum(end.num_output_tokens for end in self.ends)


class RequestLives:
    """The requests that have not ended. It ignores requests that arrived before the first event it sees."""

    def __init__(self) -> None:
        self.live: dict[str, RequestLife] = {}
        self._starting: RequestLife | None = None  # a prefix hit follows its sequence's start directly
        self._handlers: dict[type[Event], Callable[[RequestLife, Any], None]] = {
            Started: self._started,
            Forked: self._forked,
            Unforked: self._unforked,
            Preempted: self._preempted,
            FirstToken: self._first_token,
            Finished: self._finished,
        }

    def follow(self, event: Event) -> RequestLife | None:
        """The request that this event is about; it has ended if `num_live` is 0."""
        if type(event) is Arrived:
            return self._arrived(event)
        if type(event) is PrefixHit:
            return self._prefix_hit(event)
        if (handler := self._handlers.get(type(event))) is None:
            return None
        if type(event) is Started:
            self._starting = None
        life = self.live.get(event.request_id)  # type: ignore[attr-defined]  # every event with a handler has one
        if life is not None:
            handler(life, event)
        return life

    def _arrived(self, event: Arrived) -> RequestLife:
        life = RequestLife(
            request_id=event.request_id,
            arrival=event.time if event.arrival_time is None else event.arrival_time,
            num_prompt_tokens=event.num_prompt_tokens,
            num_sequences=event.num_sequences,
            max_tokens=event.max_tokens,
            temperature=event.temperature,
            top_p=event.top_p,
            adapter=event.adapter,
        )
        self.live[event.request_id] = life
        return life

    def _prefix_hit(self, event: PrefixHit) -> RequestLife | None:
        life, self._starting = self._starting, None
        if life is not None:
            life.num_cached_tokens = event.num_tokens
        return life

    def _started(self, life: RequestLife, event: Started) -> None:
        if life.start is None:  # a resumed sequence finds its own blocks
            life.start, self._starting = event.time, life

    def _forked(self, life: RequestLife, event: Forked) -> None:
        life.num_live += 1

    def _unforked(self, life: RequestLife, event: Unforked) -> None:
        life.num_live -= 1

    def _preempted(self, life: RequestLife, event: Preempted) -> None:
        life.num_preemptions += 1

    def _first_token(self, life: RequestLife, event: FirstToken) -> None:
        life.first_token = event.time

    def _finished(self, life: RequestLife, event: Finished) -> None:
        life.ends.append(SequenceEnd(event.time, event.reason, event.num_output_tokens))
        life.num_live -= 1
        if life.num_live == 0:
            del self.live[event.request_id]


def between(begin: float | None, end: float | None) -> float | None:
    """None unless both moments came."""
    return None if begin is None or end is None else end - begin


class SizeCounts:
    """Observations by bucket: bucket i counts those up to bounds[i], the last one the rest."""

    __slots__ = ("_labels", "bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0
        self._labels = [(("le", name),) for name in (*(str(float(bound)) for bound in bounds), "+Inf")]

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def samples(self) -> list[Sample]:
        """As Prometheus expects: observations up to each bound, their sum and their number."""
        up_to = list(accumulate(list(self.counts)))
        buckets: list[Sample] = [("_bucket", label, number) for label, number in zip(self._labels, up_to, strict=True)]
        return [*buckets, ("_sum", (), self.total), ("_count", (), up_to[-1])]


class TokenGaps:
    """The time between two tokens of a sequence, for all sequences of a step at once.

    Sequences with a token in both this step and the last share one gap. Only those that come or go are handled
    separately.
    """

    def __init__(self, histogram: SizeCounts) -> None:
        self._histogram = histogram
        self._last: tuple[int, ...] = ()  # sequences of the last step with tokens
        self._members: set[int] = set()  # the same, as a set
        self._time = 0.0  # of that step
        self._times: dict[int, float] = {}  # absent sequence -> its last token
        self._ended: set[int] = set()

    def step(self, sampled_ids: tuple[int, ...], time: float) -> None:
        """Count a step in which these sequences got tokens."""
        if not sampled_ids:
            return
        if sampled_ids == self._last:
            self._histogram.observe(time - self._time, len(sampled_ids))
        else:
            self._change(sampled_ids, time)
        self._time = time

    def ended(self, sequence_id: int) -> None:
        """The sequence gets no tokens after the step being counted."""
        self._ended.add(sequence_id)

    def _change(self, sampled_ids: tuple[int, ...], time: float) -> None:
        before, now = self._members, set(sampled_ids)
        leaving = before - now
        if num_staying := len(before) - len(leaving):
            self._histogram.observe(time - self._time, num_staying)
        for sequence_id in now - before:
            if (since := self._times.pop(sequence_id, None)) is not None:  # None: its first token, without a gap
                self._histogram.observe(time - since)
        for sequence_id in leaving - self._ended:
            self._times[sequence_id] = self._time
        for sequence_id in self._ended - now:  # ended for good
            self._times.pop(sequence_id, None)
        self._ended &= now
        self._last, self._members = sampled_ids, now
