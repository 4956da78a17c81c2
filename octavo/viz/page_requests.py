"""PageRequests: the requests of a run as a page lists them: numbered by arrival, with their timelines."""

from __future__ import annotations

from collections import Counter
from typing import Any

from octavo.observe.events import Arrived, Event
from octavo.observe.lives import RequestLife, RequestLives
from octavo.observe.snapshot import Snapshot


class PageRequests:
    """place_of: request -> its number."""

    def __init__(self) -> None:
        self.place_of: dict[str, int] = {}
        self._all: list[RequestLife] = []
        self._lives = RequestLives()

    def __len__(self) -> int:
        return len(self._all)

    def follow(self, event: Event) -> None:
        life = self._lives.follow(event)
        if type(event) is Arrived and life is not None:
            self.place_of[event.request_id] = len(self._all)
            self._all.append(life)

    def begin_anew(self, event: Snapshot) -> None:
        """With the requests that live then."""
        for arrived in event.requests:
            self.follow(arrived)
        for name, number in Counter(one.request_id for one in event.sequences).items():
            if name in self._lives.live:
                self._lives.live[name].num_live = number

    def told(self, begin: float) -> list[list[Any]]:
        """Of each: name, prompt tokens, sequences, cached tokens, preemptions, arrival, start, first token, end, output
        tokens, seconds per output token. begin: of the run."""
        return [_told(life, begin) for life in self._all]


def _told(life: RequestLife, begin: float) -> list[Any]:
    end = life.end if life.ends and life.num_live == 0 else None
    moments = [life.arrival, life.start, life.first_token, end]
    since = [None if moment is None else round(moment - begin, 5) for moment in moments]
    counts = [life.num_prompt_tokens, life.num_sequences, life.num_cached_tokens, life.num_preemptions]
    return [life.request_id, *counts, *since, life.num_output_tokens, _tpot(life)]


def _tpot(life: RequestLife) -> float | None:
    """Seconds per token after the first, on average over a request's sequences."""
    first = life.first_token
    ends = [end for end in life.ends if end.num_output_tokens > 1]
    if first is None or not ends:
        return None
    return round(sum((end.time - first) / (end.num_output_tokens - 1) for end in ends) / len(ends), 6)
