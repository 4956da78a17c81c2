"""A run as the page's script reads it: what each step changes, so that a thousand steps take little room.

A change is a short list that begins with a letter; `replay.js` carries it out, and the tests compare each frame.

    a request sequence          arrived              p group depth before block content ...   published
    r sequence                  runs                 e block                           evicted
    h sequence tokens [ids] ..  prefix hit           x [block ...]                     forgotten; all, if none is named
    g sequence group id ...     blocks given         m sequence why by                 preempted
    k parent child request      forked               d sequence reason tokens          ended
    u sequence                  given up             t request                         first token
    c sequence group place id   copied               w request why                     waits
    f sequence group why        blocks freed         s sequence start tokens           in the batch, unlike promised
    o sequence group id ...     window passed        q sequence                        no longer in the batch

A page that begins later in the run has its state there as changes, too: z sequence request running tokens [table] ...
Before them may be y: nothing that was known holds any more.

A sequence of the last batch is promised as many tokens again, right after those. Words, contents and requests are
numbers: places in the lists beside the changes. "before" is the content before a block, or -1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from octavo.errors import LogError
from octavo.observe import events
from octavo.observe.events import Event
from octavo.observe.frames import Frame, check_sizes
from octavo.observe.snapshot import Snapshot
from octavo.viz.page_requests import PageRequests

Change = list[Any]

_HASH_DIGITS = 8  # of a content, as people see it


#: more steps make a page slow
MAX_STEPS = 20_000


class TooManyStepsError(LogError):
    """A page can have MAX_STEPS steps."""


class Deltas:
    """Follows a log. changes[i] leads from frame i-1 to frame i; the last leads to the end. first_step: steps before it
    are followed, but are not in the page."""

    def __init__(self, sizes: events.EngineStarted, first_step: int = 0) -> None:
        check_sizes(sizes)
        self.frame = Frame(sizes)
        self._first_step = first_step
        self.num_lost = 0
        self.changes: list[list[Change]] = [[]]
        self.steps: list[int] = []
        self.times: list[float] = []
        self.step_ms: dict[int, float] = {}
        self._begin: float | None = None
        self.requests = PageRequests()
        self._words: dict[str, int] = {}
        self._contents: dict[bytes, int] = {}
        self._writers: dict[type[Event], Callable[[Any], Change | None]] = {
            events.Arrived: self._arrived,
            events.Started: lambda event: ["r", event.sequence_id],
            events.PrefixHit: self._prefix_hit,
            events.BlocksGiven: lambda event: ["g", event.sequence_id, event.group, *event.block_ids],
            events.BlocksPublished: self._published,
            events.Forked: lambda event: ["k", event.parent_id, event.sequence_id, self._request(event.request_id)],
            events.Unforked: lambda event: ["u", event.sequence_id],
            events.BlockCopied: self._copied,
            events.BlocksFreed: self._freed,
            events.BlockEvicted: lambda event: ["e", event.block_id],
            events.BlocksForgotten: lambda event: ["x", *(event.block_ids or ())],
            events.Preempted: lambda event: ["m", event.sequence_id, self._word(event.why), event.by],
            events.Finished: self._finished,
            events.FirstToken: lambda event: ["t", self._request(event.request_id)],
            events.Waits: lambda event: ["w", self._request(event.request_id), self._word(event.why)],
        }

    def follow(self, event: Event) -> None:
        if self._begin is None:
            self._begin = event.time
        if type(event) is events.Scheduled:
            self._scheduled(event)
            return
        if type(event) is Snapshot:
            self._begin_anew(event)
            return
        self.requests.follow(event)
        if type(event) is events.StepDone:
            self.step_ms[event.step] = (event.schedule_s + event.execute_s + event.update_s) * 1e3
        if type(event) is events.EventsLost:
            self.num_lost += event.num_events
        if not self._has_begun:
            self.frame.follow(event)
            return
        writer = self._writers.get(type(event))
        change = writer(event) if writer is not None else None
        if change is not None:
            self.changes[-1].append(change)
        self.frame.follow(event)

    def _begin_anew(self, event: Snapshot) -> None:
        self.requests.begin_anew(event)
        self.frame.follow(event)
        if self._has_begun:
            self.changes[-1] = [*self.changes[-1], ["y"], *self._whole()]

    @property
    def _has_begun(self) -> bool:
        """The step before the first one is planned, so what happens now is of the first."""
        return self.frame.step + 1 >= self._first_step

    def data(self) -> dict[str, Any]:
        """All of it, as values of JSON."""
        return {
            "sizes": {name: getattr(self.frame.sizes, name) for name in _SIZES},
            "numLost": self.num_lost,
            "requests": self.requests.told(self._begin or 0.0),
            "words": list(self._words),
            "contents": [content.hex()[:_HASH_DIGITS] for content in self._contents],
            "steps": self.steps,
            "times": [round(time - (self._begin or 0.0), 5) for time in self.times],
            "stepMs": [round(self.step_ms.get(step, 0.0), 3) for step in self.steps],
            "changes": self.changes,
        }

    # One method for each kind of event that takes some thought

    def _arrived(self, event: events.Arrived) -> Change:
        return ["a", self._request(event.request_id), event.sequence_id]

    def _prefix_hit(self, event: events.PrefixHit) -> Change:
        tables, start = [], 0
        for number in event.num_in_group or (len(event.block_ids),):
            tables.append(list(event.block_ids[start : start + number]))
            start += number
        return ["h", event.sequence_id, event.num_tokens, *tables]

    def _published(self, event: events.BlocksPublished) -> Change:
        parent = self.frame.nodes.get(event.parent)
        pairs = zip(event.block_ids, event.hashes, strict=False)  # the frame checks it
        placed = [number for block_id, content in pairs for number in (block_id, self._content(content))]
        return ["p", event.group, event.first, -1 if parent is None else self._content(parent.content), *placed]

    def _copied(self, event: events.BlockCopied) -> Change | None:
        for group, table in enumerate(self.frame.tables.get(event.sequence_id, ())):
            if event.source in table:
                return ["c", event.sequence_id, group, table.index(event.source), event.target]
        return None  # the log has lost where it was

    def _freed(self, event: events.BlocksFreed) -> Change:
        if event.why == "window":
            return ["o", event.sequence_id, event.group, *event.block_ids]
        return ["f", event.sequence_id, event.group, self._word(event.why)]

    def _finished(self, event: events.Finished) -> Change:
        return ["d", event.sequence_id, self._word(event.reason), event.num_output_tokens]

    def _scheduled(self, event: events.Scheduled) -> None:
        batch_before, had_begun = self.frame.batch if self.steps else {}, self._has_begun
        self.frame.follow(event)
        if not had_begun:
            if self._has_begun:
                self.changes[-1] += self._whole()
            return
        promised = {one: (grant.start + grant.num_tokens, grant.num_tokens) for one, grant in batch_before.items()}
        changes = self.changes[-1]
        changes += [["q", sequence_id] for sequence_id in promised if sequence_id not in self.frame.batch]
        for sequence_id, grant in self.frame.batch.items():
            if promised.get(sequence_id) != (grant.start, grant.num_tokens):
                changes.append(["s", sequence_id, grant.start, grant.num_tokens])
        self.steps.append(event.step)
        self.times.append(event.time)
        self.changes.append([])
        if len(self.steps) > MAX_STEPS:
            raise TooManyStepsError(f"more than {MAX_STEPS:,} steps, which is what a page can have")

    def _whole(self) -> list[Change]:
        """The frame as changes of an empty one."""
        frame, changes = self.frame, list[Change]()
        for sequence_id, request_id in frame.request_of.items():
            number, tables = frame.num_computed.get(sequence_id, 0), frame.tables.get(sequence_id, [])
            state = self._request(request_id), int(sequence_id in frame.running), number
            changes.append(["z", sequence_id, *state, *map(list, tables)])
        for block_id, node in frame.nodes.items():
            before = self._content(node.parent) if node.parent else -1
            changes.append(["p", node.group, node.depth, before, block_id, self._content(node.content)])
        return changes

    def _request(self, request_id: str) -> int:
        return self.requests.place_of.get(request_id, -1)

    def _word(self, text: str) -> int:
        return self._words.setdefault(text, len(self._words))

    def _content(self, content: bytes) -> int:
        return self._contents.setdefault(content, len(self._contents))


_SIZES = (
    *("num_blocks", "block_size", "block_bytes", "num_groups", "windows", "max_model_len", "max_num_seqs"),
    *("max_num_batched_tokens", "enable_prefix_caching"),
)


def deltas_of(
    sizes: events.EngineStarted, log: Iterable[Event], first_step: int = 0, last_step: int | None = None
) -> Deltas:
    """A log's steps, from the first to the last one that is wanted."""
    deltas = Deltas(sizes, first_step)
    for event in log:
        if type(event) is events.Scheduled and last_step is not None and event.step > last_step:
            break
        deltas.follow(event)
    return deltas
