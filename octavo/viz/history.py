"""What each sequence did, step by step, from its arrival to its end: the lines of the schedule.

    a     ──────▒▒▒▓▓██████████●        waits, two chunks of its prompt, decodes, ends
    b.0              ▓▓████┄┄┄┄░░███●   is preempted, and computed again

Columns have one entry for each step; spans and ends count in those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from octavo.observe import events
from octavo.observe.events import Event
from octavo.observe.frames import Frame, check_sizes
from octavo.observe.snapshot import Snapshot

Kind = Literal["waiting", "idle", "preempted", "prefill", "again", "decode"]

#: spans that go on from step to step; each chunk of a prompt is a span of its own
_GOES_ON = ("waiting", "idle", "preempted", "decode")
_LONGEST_NAME = 6


@dataclass(slots=True)
class Span:
    """Steps first .. end-1, in which one thing happened. num_tokens: computed in them."""

    kind: Kind
    first: int
    end: int
    num_tokens: int


@dataclass(slots=True)
class Line:
    """One sequence. end: the step before which it ended, and how; None while it lives. reached: the most tokens that it
    ever had computed."""

    sequence_id: int
    name: str
    request_id: str
    prompt_len: int
    spans: list[Span] = field(default_factory=list)
    end: tuple[int, str] | None = None
    reached: int = 0
    has_run: bool = False


@dataclass(frozen=True, slots=True)
class StepColumn:
    """What a step computed: tokens of prompts, those computed again after a preemption, and one for each decode."""

    step: int
    time: float
    prefill: int
    again: int
    decode: int
    num_sequences: int
    num_waiting: int
    num_used_blocks: int

    @property
    def num_tokens(self) -> int:
        return self.prefill + self.again + self.decode


class History:
    """Follows a log. lines: by sequence id, in order of arrival. columns: one for each step. frame: the last one."""

    def __init__(self, sizes: events.EngineStarted) -> None:
        check_sizes(sizes)
        self.frame = Frame(sizes)
        self.lines: dict[int, Line] = {}
        self.columns: list[StepColumn] = []
        self.done: dict[int, events.StepDone] = {}
        self._arrivals: dict[str, tuple[int, events.Arrived]] = {}  # request -> its number, and its arrival

    def follow(self, event: Event) -> None:
        if type(event) is events.Arrived:
            self._arrivals[event.request_id] = len(self._arrivals) + 1, event
        elif type(event) is events.StepDone:
            self.done[event.step] = event
        elif type(event) is events.Finished:
            self._end(event.sequence_id, event.reason)
        elif type(event) is events.Unforked:
            self._end(event.sequence_id, "given up")
        self.frame.follow(event)
        if type(event) is events.Scheduled:
            self._note(event)
        elif type(event) is Snapshot:
            self._begin_anew(event)

    def _begin_anew(self, event: Snapshot) -> None:
        for arrived in event.requests:
            self._arrivals.setdefault(arrived.request_id, (len(self._arrivals) + 1, arrived))
        for one in event.sequences:
            line = self._line(one.sequence_id)
            line.reached, line.has_run = one.num_computed, one.num_computed > 0

    def _end(self, sequence_id: int, reason: str) -> None:
        if (line := self.lines.get(sequence_id)) is not None:
            line.end = len(self.columns), reason

    def _note(self, event: events.Scheduled) -> None:
        frame, tokens = self.frame, {"prefill": 0, "again": 0, "decode": 0}
        for sequence_id in sorted(frame.waiting | frame.running | frame.batch.keys()):
            line, grant = self._line(sequence_id), frame.batch.get(sequence_id)
            if grant is None:
                is_idle = sequence_id in frame.running
                self._extend(line, "idle" if is_idle else "preempted" if line.has_run else "waiting", 0)
                continue
            kind: Kind = "decode"
            if grant.start < line.reached:
                kind = "again"
            elif grant.start < line.prompt_len:
                kind = "prefill"
            tokens[kind] += grant.num_tokens
            line.reached = max(line.reached, grant.start + grant.num_tokens)
            self._extend(line, kind, grant.num_tokens)
        self.columns.append(
            StepColumn(
                step=event.step,
                time=event.time,
                **tokens,
                num_sequences=len(frame.batch),
                num_waiting=len(frame.waiting),
                num_used_blocks=frame.sizes.num_blocks - event.num_free_blocks,
            )
        )

    def _extend(self, line: Line, kind: Kind, num_tokens: int) -> None:
        at, last = len(self.columns), line.spans[-1] if line.spans else None
        line.has_run |= kind != "waiting"
        line.end = None  # a beam that was given up may be another's fork now
        if last is not None and last.kind == kind and last.end == at and kind in _GOES_ON:
            last.end, last.num_tokens = at + 1, last.num_tokens + num_tokens
        else:
            line.spans.append(Span(kind, at, at + 1, num_tokens))

    def _line(self, sequence_id: int) -> Line:
        line = self.lines.get(sequence_id)
        if line is None:
            request_id = self.frame.request_of.get(sequence_id, "")
            arrived = self._arrivals[request_id][1] if request_id in self._arrivals else None
            prompt_len = 0 if arrived is None else arrived.num_prompt_tokens
            line = self.lines[sequence_id] = Line(sequence_id, self.name_of(sequence_id), request_id, prompt_len)
        return line

    def name_of(self, sequence_id: int) -> str:
        """A short name: the request's, or its number if that is long, and the sample's number."""
        request_id = self.frame.request_of.get(sequence_id, "")
        if request_id not in self._arrivals:
            return f"seq {sequence_id}"
        number, arrived = self._arrivals[request_id]
        name = request_id if len(request_id) <= _LONGEST_NAME else f"#{number}"
        return name if arrived.num_sequences == 1 else f"{name}.{sequence_id - arrived.sequence_id}"


def history_of(sizes: events.EngineStarted, log: Iterable[Event], last_step: int | None = None) -> History:
    """Of a log up to a step, or to its end; the frame is that step's."""
    history = History(sizes)
    for event in log:
        history.follow(event)
        if type(event) is events.Scheduled and event.step == last_step:
            break
    return history
