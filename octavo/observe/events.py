"""The event log: one frozen record for everything that happens in the engine.

Metrics, reports, golden tests and the visualiser read only this log.
`time` is seconds of the engine's monotonic clock; `step` counts steps from 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    time: float


@dataclass(frozen=True, slots=True)
class EngineStarted(Event):
    """The engine's sizes. num_blocks: without the null block. cache_options: the KV cache's other options by vLLM's
    names, as text."""

    num_blocks: int
    block_size: int
    block_bytes: int
    num_groups: int
    max_model_len: int
    enable_prefix_caching: bool = True
    cache_options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Arrived(Event):
    """A request entered the waiting queue.

    arrival_time: when it reached our first process, on the same clock; None: with this event.
    max_tokens: the limit for each of its sequences.
    """

    request_id: str
    num_prompt_tokens: int
    num_sequences: int
    arrival_time: float | None = None
    max_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """A request was rejected on arrival; `why` is a word: invalid, queue_full, ..."""

    request_id: str
    why: str


@dataclass(frozen=True, slots=True)
class Waits(Event):
    """Why a request did not start this step, as `word: detail`; written when the reason changes, not every step."""

    request_id: str
    why: str


@dataclass(frozen=True, slots=True)
class Started(Event):
    """A sequence got a row, for the first time or after a preemption."""

    sequence_id: int
    request_id: str
    row: int


@dataclass(frozen=True, slots=True)
class Scheduled(Event):
    """One step's grants, as columns: sequence i computes num_tokens[i] tokens from num_computed[i] on."""

    step: int
    sequence_ids: tuple[int, ...]
    num_computed: tuple[int, ...]
    num_tokens: tuple[int, ...]
    num_waiting: int
    num_free_blocks: int


@dataclass(frozen=True, slots=True)
class BlocksGiven(Event):
    """A sequence's table grew by these blocks."""

    sequence_id: int
    group: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefixHit(Event):
    """A sequence found num_tokens of its tokens in the prefix tree."""

    sequence_id: int
    num_tokens: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlocksPublished(Event):
    """Full blocks of a sequence entered the prefix tree, each the parent of the next.

    parent: the block before the first one, 0 at the start of a sequence or behind its window.
    """

    sequence_id: int
    group: int
    parent: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forked(Event):
    """A child sequence shares all blocks of its parent."""

    parent_id: int
    sequence_id: int
    request_id: str
    num_shared_blocks: int


@dataclass(frozen=True, slots=True)
class Unforked(Event):
    """A beam is given up: its place goes to a fork of another beam, or all beams of its request begin again."""

    sequence_id: int
    request_id: str


@dataclass(frozen=True, slots=True)
class BlockCopied(Event):
    """Copy-on-write: the sequence wrote into a shared block."""

    sequence_id: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class BlocksFreed(Event):
    """A sequence released these blocks; `why` is finished, preempted, aborted, error, window or dropped."""

    sequence_id: int
    group: int
    block_ids: tuple[int, ...]
    why: str


@dataclass(frozen=True, slots=True)
class BlockEvicted(Event):
    """A cached block was evicted to make room."""

    block_id: int


@dataclass(frozen=True, slots=True)
class Preempted(Event):
    """A running sequence gave up its blocks and waits again."""

    sequence_id: int
    request_id: str
    num_lost_tokens: int


@dataclass(frozen=True, slots=True)
class Sampled(Event):
    """The sequences that got new tokens in a step. Finished events of sequences that ended come before this.

    num_tokens: the total, larger than the number of ids if a sequence got several.
    """

    step: int
    sequence_ids: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class FirstToken(Event):
    request_id: str


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """A sequence ended. is_corrupted: no token could be drawn from its logits."""

    sequence_id: int
    request_id: str
    reason: str
    num_output_tokens: int
    is_corrupted: bool = False


@dataclass(frozen=True, slots=True)
class StepDone(Event):
    """A step's cost: seconds in schedule, execute and update, and the size of its batch."""

    step: int
    schedule_s: float
    execute_s: float
    update_s: float
    num_tokens: int
    num_seqs: int


class EventLog:
    """A bounded log with one writer (the engine's thread) and any number of readers.

    is_on: events are kept or listened to; writers check it before they build one. write: appends an event, and calls
    the listeners if there are any. started: the engine's sizes, kept even when the log has dropped the event.
    """

    write: Callable[[Event], None]

    def __init__(self, capacity: int) -> None:
        self._events: deque[Event] = deque(maxlen=capacity)
        self._listeners: list[Callable[[Event], None]] = []
        self.started: EngineStarted | None = None
        self.is_on = capacity > 0
        self.write = self._events.append

    def start(self, event: EngineStarted) -> None:
        """Write the first event."""
        self.started = event
        self.write(event)

    def listen(self, listener: Callable[[Event], None]) -> None:
        self._listeners.append(listener)
        self.is_on = True
        self.write = self._write_to_all

    def _write_to_all(self, event: Event) -> None:
        self._events.append(event)
        for listener in self._listeners:
            listener(event)

    def __iter__(self) -> Iterator[Event]:
        while True:
            try:
                return iter(tuple(self._events))
            except RuntimeError:  # written to meanwhile
                continue

    def __len__(self) -> int:
        return len(self._events)
