"""Which events concern a request, and what they say of it: the stories of `octavo explain`.

    for story in stories(events, "cmpl-1"): print(story.name, story.moments)

A server's call may be several requests of the engine; the call's id finds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from octavo.errors import LogError
from octavo.observe import events
from octavo.observe.events import Event
from octavo.observe.snapshot import Snapshot
from octavo.observe.story import Story
from octavo.shown import shown, suggestion

#: requests that one id may find
MAX_STORIES = 50

_ANSWERS = ("cmpl-", "chatcmpl-")
#: what a server's routes put before a call's id
_CALLS = (*_ANSWERS, "msg_", "resp-", "ollama-", "embd-", "pool-", "classify-", "score-", "rerank-")
_MOST_NAMES = 1000


def stories(log: Iterable[Event], asked: str) -> list[Story]:
    """The lives of the requests with this id, or of all requests of the call with this id. Raises LogError if there is
    none."""
    teller = _Teller(lambda name: is_asked(name, asked))
    for event in log:
        teller.follow(event)
    if not teller.stories:
        known = list(teller.names)
        raise LogError(f"no request {shown(asked)} is in this log{'; ' + suggestion(asked, known) if known else ''}")
    return teller.told()


def is_asked(name: str, asked: str) -> bool:
    """Whether an engine's request belongs to what a user names: that request, or a call, by its answer's id or by the
    one that its client gave. Calls are numbered: CALL-PLACE-SERIAL."""
    pairs = [(name, asked)]
    pairs += [(name, asked.removeprefix(prefix)) for prefix in _ANSWERS if asked.startswith(prefix)]
    pairs += [(name.removeprefix(prefix), asked) for prefix in _CALLS if name.startswith(prefix)]
    return any(call and (one == call or one.startswith(f"{call}-")) for one, call in pairs)


class _Teller:
    """names: the last requests, in order. stories: of those that `wants` chose."""

    def __init__(self, wants: Callable[[str], bool]) -> None:
        self._wants = wants
        self.names: dict[str, None] = {}
        self.stories: dict[str, Story] = {}
        self._ends: dict[str, float] = {}
        self._owner: dict[int, str] = {}  # sequences that live -> their requests
        self._num_evicted = 0  # since blocks were given
        self._forks: list[events.Forked] = []  # not told yet
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            events.Arrived: self._arrived,
            Snapshot: self._snapshot,
            events.Refused: self._refused,
            events.Waits: self._waits,
            events.Started: self._started,
            events.PrefixHit: self._prefix_hit,
            events.BlocksCame: self._blocks_came,
            events.BlockEvicted: self._evicted,
            events.BlocksGiven: self._given,
            events.BlockCopied: self._copied,
            events.Scheduled: self._scheduled,
            events.Sampled: self._sampled,
            events.FirstToken: self._first_token,
            events.Forked: self._forked,
            events.Unforked: self._unforked,
            events.Preempted: self._preempted,
            events.StepFailed: self._step_failed,
            events.EndAsked: self._end_asked,
            events.Finished: self._finished,
        }

    def follow(self, event: Event) -> None:
        if self._forks and type(event) is not events.Forked:
            self._tell_forks()
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def told(self) -> list[Story]:
        for name, story in self.stories.items():
            end = self._ends.get(name)
            last = end if end is not None else story.begin + max((one.after for one in story.moments), default=0.0)
            story.add(last, story.summary(end))
        return list(self.stories.values())

    def _of(self, sequence_id: int) -> Story | None:
        return self.stories.get(self._owner.get(sequence_id, ""))

    def _named(self, name: str, begin: float, arrived: events.Arrived | None) -> Story | None:
        """The story of a request that is seen, if it is wanted."""
        self.names[name] = None
        if len(self.names) > _MOST_NAMES:
            del self.names[next(iter(self.names))]
        if name in self.stories or not self._wants(name) or len(self.stories) >= MAX_STORIES:
            return self.stories.get(name)
        return self.stories.setdefault(name, Story(name, begin, arrived))

    def _arrived(self, event: events.Arrived) -> None:
        self._owner[event.sequence_id] = event.request_id
        begin = event.time if event.arrival_time is None else event.arrival_time
        if (story := self._named(event.request_id, begin, event)) is not None and not story.moments:
            story.joins(event.sequence_id)
            story.arrives(event)

    def _snapshot(self, event: Snapshot) -> None:
        """Where a log begins in the middle, requests are known from here on."""
        for arrived in event.requests:
            if arrived.request_id not in self.names:
                self._arrived(arrived)
        for one in event.sequences:
            self._owner[one.sequence_id] = one.request_id
            if (story := self.stories.get(one.request_id)) is not None:
                story.joins(one.sequence_id)

    def _refused(self, event: events.Refused) -> None:
        if (story := self._named(event.request_id, event.time, None)) is not None:
            story.add(event.time, f"was refused: {event.why}")
            self._ends[event.request_id] = event.time

    def _waits(self, event: events.Waits) -> None:
        if (story := self._named(event.request_id, event.time, None)) is not None:
            story.waits(event)

    def _started(self, event: events.Started) -> None:
        self._owner[event.sequence_id] = event.request_id
        for sequence_id in event.passed:
            if (passed := self._of(sequence_id)) is not None:
                passed.is_passed(event.request_id)
        if (story := self._named(event.request_id, event.time, None)) is not None:
            story.starts(event)

    def _blocks_came(self, event: events.BlocksCame) -> None:
        if (story := self.stories.get(event.request_id)) is not None:
            story.gets_blocks(event)

    def _prefix_hit(self, event: events.PrefixHit) -> None:
        if (story := self._of(event.sequence_id)) is not None:
            story.finds(event)

    def _evicted(self, event: events.BlockEvicted) -> None:
        self._num_evicted += 1

    def _given(self, event: events.BlocksGiven) -> None:
        num_evicted, self._num_evicted = self._num_evicted, 0
        if (story := self._of(event.sequence_id)) is not None:
            story.takes_blocks(len(event.block_ids), num_evicted)

    def _copied(self, event: events.BlockCopied) -> None:
        num_evicted, self._num_evicted = self._num_evicted, 0
        if (story := self._of(event.sequence_id)) is not None:
            story.takes_blocks(1, num_evicted)
            story.copies(event)

    def _scheduled(self, event: events.Scheduled) -> None:
        for story in self.stories.values():
            if story.is_prefilling:
                story.computes(event)

    def _sampled(self, event: events.Sampled) -> None:
        for story in self.stories.values():
            if story.indices:
                story.draws(event)

    def _first_token(self, event: events.FirstToken) -> None:
        if (story := self.stories.get(event.request_id)) is not None:
            story.has_first_token(event.time)

    def _forked(self, event: events.Forked) -> None:
        self._owner[event.sequence_id] = event.request_id
        if event.request_id in self.stories:
            self._forks.append(event)

    def _tell_forks(self) -> None:
        """Forks of a request come together."""
        forks, self._forks = self._forks, []
        for name in dict.fromkeys(fork.request_id for fork in forks):
            own = [fork for fork in forks if fork.request_id == name]
            story = self.stories[name]
            if story.arrived is None or not story.arrived.num_beams or len(own) > 1:
                story.forks(own[0].time, [fork.sequence_id for fork in own], own[0].num_shared_blocks)

    def _unforked(self, event: events.Unforked) -> None:
        if (story := self.stories.get(event.request_id)) is not None:
            story.gives_up_beam(event.sequence_id)

    def _preempted(self, event: events.Preempted) -> None:
        if (story := self._named(event.request_id, event.time, None)) is not None:
            story.is_preempted(event, self._owner.get(event.by))

    def _step_failed(self, event: events.StepFailed) -> None:
        for story in self.stories.values():
            if story.indices:
                story.add(event.time, f"a step failed: {event.fault}")

    def _end_asked(self, event: events.EndAsked) -> None:
        if (story := self.stories.get(event.request_id)) is not None:
            story.is_asked_to_end(event)

    def _finished(self, event: events.Finished) -> None:
        self._owner.pop(event.sequence_id, None)
        if (story := self._named(event.request_id, event.time, None)) is not None:
            story.ends(event)
            self._ends[event.request_id] = event.time


def requests_in(log: Iterable[Event], most: int) -> list[str]:
    """The ids of a log's last requests."""
    teller = _Teller(lambda name: False)
    for event in log:
        teller.follow(event)
    return list(islice(reversed(teller.names), most))[::-1]
