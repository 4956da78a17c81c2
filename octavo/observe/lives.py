"""The lives of requests, put together from the event log: when each arrived, started, spoke first and ended.

    arrival ──queue──▶ start ──prefill──▶ first token ──decode──▶ end
            └────────────── TTFT ──────────────┘
                       └────────────── inference ──────────────┘

Metrics and traces are two ways to tell the same lives. A life ends with the last of its sequences.
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
    """One request. Times are of the engine's clock; None: it has not come to that, or ended before it could."""

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
    """Owner of the lives that have not ended. Requests that arrived before the first event it sees are unknown to
    it, and passed over."""

    def __init__(self) -> None:
        self.live: dict[str, RequestLife] = {}
        self._starting: RequestLife | None = None  # a prefix hit belongs to the start right before it
        self._handlers: dict[type[Event], Callable[[Any], RequestLife | None]] = {
            Arrived: self._arrived,
            Started: self._started,
            PrefixHit: self._prefix_hit,
            Forked: self._forked,
            Preempted: self._preempted,
            FirstToken: self._first_token,
            Finished: self._finished,
        }

    def follow(self, event: Event) -> RequestLife | None:
        """The life that this event is about, ended (`num_live` is 0) or not."""
        handler = self._handlers.get(type(event))
        return None if handler is None else handler(event)

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

    def _started(self, event: Started) -> RequestLife | None:
        life = self.live.get(event.request_id)
        is_first = life is not None and life.start is None
        if life is not None and is_first:
            life.start = event.time
        self._starting = life if is_first else None  # what a resumed sequence finds again was its own
        return life

    def _prefix_hit(self, event: PrefixHit) -> RequestLife | None:
        life, self._starting = self._starting, None
        if life is not None:
            life.num_cached_tokens = event.num_tokens
        return life

    def _forked(self, event: Forked) -> RequestLife | None:
        life = self.live.get(event.request_id)
        if life is not None:
            life.num_live += 1
        return life

    def _preempted(self, event: Preempted) -> RequestLife | None:
        life = self.live.get(event.request_id)
        if life is not None:
            life.num_preemptions += 1
        return life

    def _first_token(self, event: FirstToken) -> RequestLife | None:
        life = self.live.get(event.request_id)
        if life is not None:
            life.first_token = event.time
        return life

    def _finished(self, event: Finished) -> RequestLife | None:
        life = self.live.get(event.request_id)
        if life is not None:
            life.ends.append(SequenceEnd(event.time, event.reason, event.num_output_tokens))
            life.num_live -= 1
            if life.num_live == 0:
                del self.live[event.request_id]
        return life


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin
