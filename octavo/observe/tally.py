"""Tally: sums up the event log into a report.

tally = Tally(llm.events)      follows the log from here on
...
for label, text in tally.report().lines(): print(label, text)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import singledispatchmethod

from octavo.observe import events
from octavo.observe.block_use import Occupancy, occupancy
from octavo.observe.event_log import EventLog
from octavo.observe.frames import Frame
from octavo.observe.report import Report, Sharing


@dataclass(slots=True)
class _Totals:
    num_requests: int = 0
    num_sequences: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_steps: int = 0
    num_preemptions: int = 0
    num_prefix_tokens: int = 0
    num_forced_tokens: int = 0
    num_used_blocks: int = 0  # this and the next three: summed over steps
    num_table_entries: int = 0
    num_filled_slots: int = 0
    num_planned_steps: int = 0
    num_decode_steps: int = 0
    num_slots_read: int = 0  # by decodes, each slot once
    num_slots_read_unshared: int = 0
    first_time: float | None = None
    last_time: float = 0.0
    arrival_times: dict[str, float] = field(default_factory=dict)
    first_token_times: dict[str, float] = field(default_factory=dict)


class Tally:
    """Follows a log: the events it still holds, then every new one."""

    def __init__(self, log: EventLog) -> None:
        self._sizes: events.EngineStarted | None = None
        self._totals = _Totals()
        self._frame: Frame | None = None
        self._groups: dict[str, set[int]] = {}  # request -> its sequences, once it has forked
        self._peak = Occupancy()
        self._sharing: Sharing | None = None
        for event in log:
            self.record(event)
        log.listen(self.record)

    def record(self, event: events.Event) -> None:
        if self._frame is not None:
            self._frame.follow(event)
        self._count(event)

    @singledispatchmethod
    def _count(self, event: events.Event) -> None:
        """Other events are ignored."""

    @_count.register
    def _(self, event: events.EngineStarted) -> None:
        self._sizes, self._frame = event, Frame(event)

    @_count.register
    def _(self, event: events.Arrived) -> None:
        totals = self._totals
        totals.num_requests += 1
        totals.num_sequences += event.num_sequences
        totals.num_prompt_tokens += event.num_prompt_tokens
        totals.arrival_times[event.request_id] = event.time
        if totals.first_time is None:
            totals.first_time = event.time

    @_count.register
    def _(self, event: events.Forked) -> None:
        self._groups.setdefault(event.request_id, {event.parent_id}).add(event.sequence_id)

    @_count.register
    def _(self, event: events.PrefixHit) -> None:
        self._totals.num_prefix_tokens += event.num_tokens

    @_count.register
    def _(self, event: events.Preempted) -> None:
        self._totals.num_preemptions += 1

    @_count.register
    def _(self, event: events.Sampled) -> None:
        self._totals.num_forced_tokens += event.num_forced

    @_count.register
    def _(self, event: events.FirstToken) -> None:
        self._totals.first_token_times[event.request_id] = event.time

    @_count.register
    def _(self, event: events.Finished) -> None:
        self._totals.num_output_tokens += event.num_output_tokens
        self._totals.last_time = event.time
        group = self._groups.get(event.request_id, set())
        group.discard(event.sequence_id)
        if not group:
            self._groups.pop(event.request_id, None)

    @_count.register
    def _(self, event: events.StepDone) -> None:
        self._totals.num_steps += 1
        self._totals.last_time = event.time

    @_count.register
    def _(self, event: events.Scheduled) -> None:
        """Measure memory: a step is about to run, and its blocks are allocated."""
        if (frame := self._frame) is None:
            return  # the log has lost its beginning, so there is no report
        now, totals = occupancy(frame), self._totals
        totals.num_planned_steps += 1
        totals.num_used_blocks += now.num_used_blocks
        totals.num_table_entries += now.num_table_entries
        totals.num_filled_slots += now.num_filled_slots
        self._count_reads(event, frame)
        if now.num_used_blocks > self._peak.num_used_blocks:
            self._peak = now
        for request_id, sequence_ids in self._groups.items():
            self._look_at_group(request_id, occupancy(frame, sequence_ids))

    def _count_reads(self, event: events.Scheduled, frame: Frame) -> None:
        """What the step's decodes, the sequences that compute one token, read."""
        decodes = [one for one, number in zip(event.sequence_ids, event.num_tokens, strict=True) if number == 1]
        if decodes:
            read = occupancy(frame, decodes)
            self._totals.num_decode_steps += 1
            self._totals.num_slots_read += read.num_filled_slots
            self._totals.num_slots_read_unshared += read.num_table_slots

    def _look_at_group(self, request_id: str, now: Occupancy) -> None:
        """Keep the request that saved the most blocks, at its largest."""
        seen = Sharing(request_id, now.num_sequences, now.num_used_blocks, now.num_shared_blocks, now.num_table_entries)
        best = self._sharing
        if best is None or (
            seen.num_blocks > best.num_blocks if request_id == best.request_id else seen.num_saved > best.num_saved
        ):
            self._sharing = seen

    def report(self) -> Report:
        totals, sizes = self._totals, self._sizes
        assert sizes is not None, "a log begins with EngineStarted; this one has lost its beginning"
        ttfts = [time - totals.arrival_times[request_id] for request_id, time in totals.first_token_times.items()]
        slot_bytes, num_steps = sizes.block_bytes / sizes.block_size, max(totals.num_planned_steps, 1)
        read_bytes = slot_bytes / max(totals.num_decode_steps, 1)
        blocks_per_sequence = sizes.num_groups * -(-sizes.max_model_len // sizes.block_size)
        return Report(
            num_requests=totals.num_requests,
            num_sequences=totals.num_sequences,
            num_prompt_tokens=totals.num_prompt_tokens,
            num_output_tokens=totals.num_output_tokens,
            seconds=max(totals.last_time - (totals.first_time or 0.0), 1e-9),
            mean_ttft_s=sum(ttfts) / max(len(ttfts), 1),
            num_steps=totals.num_steps,
            num_preemptions=totals.num_preemptions,
            num_prefix_tokens=totals.num_prefix_tokens,
            num_forced_tokens=totals.num_forced_tokens,
            peak=self._peak,
            num_blocks=sizes.num_blocks,
            block_size=sizes.block_size,
            block_bytes=sizes.block_bytes,
            contiguous_blocks=self._peak.num_sequences * blocks_per_sequence,
            waste=1 - totals.num_filled_slots / max(totals.num_used_blocks * sizes.block_size, 1),
            mean_blocks=totals.num_used_blocks / num_steps,
            mean_blocks_unshared=totals.num_table_entries / num_steps,
            read_bytes=totals.num_slots_read * read_bytes,
            read_bytes_unshared=totals.num_slots_read_unshared * read_bytes,
            sharing=self._sharing,
        )
