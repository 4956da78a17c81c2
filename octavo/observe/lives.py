"""The timeline of each request, from the event log: arrival, start, first token and end.

    arrival ──queue──▶ start ──prefill──▶ first token ──decode──▶ end
            └────────────── TTFT ──────────────┘
                       └────────────── inference ──────────────┘

Metrics and traces both read these timelines. A request ends with the last of its sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from octavo.observe.events import Arrived, Event, Finished, FirstToken, Forked, Preempted, PrefixHit, Started


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
    ends: list[SequenceEnd] = field(default_factory=list)

    @property
    def end(self) -> float:
        """Of its last sequence."""
        return self.ends[-1].time

    @property
    def queue_s(self) -> float | None:
        return _between(self.arrival, self.start)

    @property
    def prefill_s(self) -> float | None:
        return _between(self.start, self.first_token)

    @property
    def ttft_s(self) -> float | None:
        return _between(self.arrival, self.first_token)

    @property
    def decode_s(self) -> float | None:
        return _between(self.first_token, self.end)

    @property
    def inference_s(self) -> float | None:
        return _between(self.start, self.end)

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
        handler = self._handlers.get(type(event))
        if handler is None:
            return None
        life = self.live.get(event.request_id)  # type: ignore[attr-defined]  # every event with a handler has one
        if life is not None:
            handler(life, event)
        elif type(event) is Started:
            self._starting = None
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
        )
        self.live[event.request_id] = life
        return life

    def _prefix_hit(self, event: PrefixHit) -> RequestLife | None:
        life, self._starting = self._starting, None
        if life is not None:
            life.num_cached_tokens = event.num_tokens
        return life

    def _started(self, life: RequestLife, event: Started) -> None:
        is_first = life.start is None
        if is_first:
            life.start = event.time
        self._starting = life if is_first else None  # a resumed sequence finds its own blocks

    def _forked(self, life: RequestLife, event: Forked) -> None:
        life.num_live += 1

    def _preempted(self, life: RequestLife, event: Preempted) -> None:
        life.num_preemptions += 1

    def _first_token(self, life: RequestLife, event: FirstToken) -> None:
        life.first_token = event.time

    def _finished(self, life: RequestLife, event: Finished) -> None:
        life.ends.append(SequenceEnd(event.time, event.reason, event.num_output_tokens))
        life.num_live -= 1
        if life.num_live == 0:
            del self.live[event.request_id]


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin
