"""One request's life in sentences, told from the event log.

    40 ms   started after 40 ms; 512 of 600 prompt tokens came from the prefix tree
    95 ms   its first token, 95 ms after its arrival; 88 prompt tokens were computed in 1 chunk, in step 12

A Story is told what concerns its request, and by name what other requests had to do with it (explain.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.observe import events
from octavo.observe.events import Arrived

_WAITS_FOR = {
    "blocks": "waits for KV blocks",
    "seats": "waits for a seat",
    "adapters": "waits for its adapter",
    "budget": "waits for a share of the step's tokens",
    "turn": "waits for its turn",
    "transfer": "waits for blocks of another engine",
}
_NUM_COPIES_TOLD = 3


@dataclass(frozen=True, slots=True)
class Moment:
    """after: seconds since the request arrived."""

    after: float
    text: str


class Story:
    """arrived: None if the log begins later. moments: in order."""

    def __init__(self, name: str, begin: float, arrived: Arrived | None) -> None:
        self.name = name
        self.arrived = arrived
        self.begin = begin
        self.moments: list[Moment] = []
        self.indices: dict[int, int] = {}  # its sequences that have not ended -> their places among its samples
        self._num_sequences = 0
        self._waits_since: float | None = begin
        self._passed_by: list[str] = []
        self._chunks: list[tuple[int, int]] = []  # tokens and step
        self._num_blocks = self._num_evicted = 0  # since they were told
        self._num_copies = self._num_given_up = self._num_tokens = 0
        self._first_token: float | None = None
        self._last_token: float | None = None
        self._longest_pause = (0.0, 0)  # and the step that ended it
        self.is_prefilling = False

    def add(self, time: float, text: str) -> None:
        self.moments.append(Moment(time - self.begin, text))

    def joins(self, sequence_id: int) -> None:
        if sequence_id not in self.indices:
            self.indices[sequence_id] = self._num_sequences
            self._num_sequences += 1

    # What happens to it

    def arrives(self, event: Arrived) -> None:
        count, limit = event.num_beams or event.num_sequences, f"at most {counted(event.max_tokens, 'token')}"
        kind = "beams" if event.num_beams else "samples"
        wanted = limit if count == 1 else f"{count} {kind} of {limit}"
        rank = f", priority {event.priority}" if event.priority else ""
        rank += f", adapter {event.adapter}" if event.adapter else ""
        self.add(self.begin, f"arrived with {counted(event.num_prompt_tokens, 'prompt token')}; wants {wanted}{rank}")
        if event.time - self.begin >= 0.001:
            self.add(event.time, "reached the engine's queue")

    def waits(self, event: events.Waits) -> None:
        reason, _, detail = event.why.partition(": ")
        self.add(event.time, f"{_WAITS_FOR.get(reason, 'waits')}: {detail}")

    def is_passed(self, by: str) -> None:
        self._passed_by.append(by)

    def starts(self, event: events.Started) -> None:
        self.joins(event.sequence_id)
        waited = "" if self._waits_since is None else f" after {span(event.time - self._waits_since)}"
        again = " again" if self._first_token is not None or self._chunks else ""
        who = "" if self._num_sequences == 1 else f"{self._who(event.sequence_id)} "
        passers = list(dict.fromkeys(self._passed_by))
        passed = f"; it was passed {times(len(self._passed_by))}, by {named(passers)}" if passers else ""
        self.add(event.time, f"{who}started{again}{waited}{passed}")
        self._waits_since, self._passed_by, self._chunks, self.is_prefilling = None, [], [], True

    def finds(self, event: events.PrefixHit) -> None:
        of = f" of {self.arrived.num_prompt_tokens:,} prompt" if self.arrived and self._first_token is None else ""
        blocks = counted(len(event.block_ids), "block")
        self.add(event.time, f"{event.num_tokens:,}{of} tokens came from the prefix tree: {blocks} not computed again")

    def gets_blocks(self, event: events.BlocksCame) -> None:
        if event.why:
            self.add(event.time, f"its prompt is computed here, not by another engine: {event.why}")
            return
        sent = f"{event.num_bytes / 1e6:,.1f} MB in {span(event.seconds)}"
        self.add(event.time, f"the blocks of {event.num_tokens:,} tokens came from {event.peer}: {sent}")

    def takes_blocks(self, num_blocks: int, num_evicted: int) -> None:
        self._num_blocks += num_blocks
        self._num_evicted += num_evicted

    def computes(self, event: events.Scheduled) -> None:
        for sequence_id in self.indices:
            if sequence_id in event.sequence_ids:
                place = event.sequence_ids.index(sequence_id)
                if event.num_tokens[place] > 1 or not self._chunks:
                    self._chunks.append((event.num_tokens[place], event.step))

    def has_first_token(self, time: float) -> None:
        self._first_token, self.is_prefilling = time, False
        computed = f"; {self._prefill()}" if self._chunks else ""
        self.add(time, f"its first token, {span(time - self.begin)} after its arrival{computed}{self._blocks()}")

    def draws(self, event: events.Sampled) -> None:
        if not any(sequence_id in event.sequence_ids for sequence_id in self.indices):
            return
        self.is_prefilling = False
        if self._last_token is not None and event.time - self._last_token > self._longest_pause[0]:
            self._longest_pause = event.time - self._last_token, event.step
        self._last_token = event.time

    def forks(self, time: float, sequence_ids: list[int], num_shared: int) -> None:
        for sequence_id in sequence_ids:
            self.joins(sequence_id)
        shared = counted(num_shared, "block")
        self.add(time, f"{counted(len(sequence_ids), 'fork')} of it, sharing its {shared}: none is copied")

    def copies(self, event: events.BlockCopied) -> None:
        self._num_copies += 1
        if self._num_copies <= _NUM_COPIES_TOLD:
            sharers = f", which {event.num_sharers} sequences held," if event.num_sharers else ""
            who = self._who(event.sequence_id)
            self.add(event.time, f"{who} wrote into block {event.source}{sharers} so it was copied to {event.target}")

    def gives_up_beam(self, sequence_id: int) -> None:
        self._num_given_up += 1

    def is_preempted(self, event: events.Preempted, by: str | None) -> None:
        whom = "itself" if by == self.name else f"request {by}" if by else "another"
        why = {
            "blocks": f"no block was free for {whom}",
            "priority": f"to make way for {whom}, which is of better priority",
            "fault": "a step failed, and its sequences run alone until the one at fault is found",
            "alone": f"{whom} runs alone after a fault and needed its blocks",
            "rewound": "it must compute again what its window has passed",
        }.get(event.why, "it gave up its blocks")
        lost = counted(event.num_lost_tokens, "computed token")
        self.add(event.time, f"{self._who(event.sequence_id)} was preempted with {lost}: {why}{self._blocks()}")
        self._waits_since, self.is_prefilling = event.time, False

    def is_asked_to_end(self, event: events.EndAsked) -> None:
        told = {"abort": "its client ended it, or left", "stop": "a stop string was found in its text"}
        self.add(event.time, told.get(event.reason, "its output could not be made"))

    def ends(self, event: events.Finished) -> None:
        who, fault = self._who(event.sequence_id), f": {event.fault}" if event.fault else ""
        self.add(event.time, f"{who} ended with {counted(event.num_output_tokens, 'token')}, {event.reason}{fault}")
        self.indices.pop(event.sequence_id, None)
        self._num_tokens += event.num_output_tokens

    def summary(self, end: float | None) -> str:
        """The last sentence. end: None if the log ends first."""
        if end is None:
            return "the log ends here, and the request has not ended" + self._blocks()
        parts = [f"in all {span(end - self.begin)}"]
        if self._first_token is not None and self._num_tokens > 1:
            parts.append(
                f"{counted(self._num_tokens, 'token')}, those after the first in {span(end - self._first_token)}"
            )
        pause, step = self._longest_pause
        if pause > 0:
            parts.append(f"its longest pause between tokens {span(pause)}, until step {step:,}")
        if self._num_copies > _NUM_COPIES_TOLD:
            parts.append(f"{self._num_copies:,} blocks copied on write")
        if self._num_given_up:
            parts.append(f"{self._num_given_up:,} beams given up for better ones")
        return "; ".join(parts) + self._blocks()

    def _who(self, sequence_id: int) -> str:
        if self._num_sequences < 2:
            return "it"
        kind = "beam" if self.arrived is not None and self.arrived.num_beams else "sample"
        return f"{kind} {self.indices.get(sequence_id, 0) + 1}"

    def _prefill(self) -> str:
        num_tokens, steps = sum(num for num, _ in self._chunks), [step for _, step in self._chunks]
        where = f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,} to {steps[-1]:,}"
        sizes = "" if len(steps) == 1 else f" of {named([f'{num:,}' for num, _ in self._chunks])}"
        return f"{counted(num_tokens, 'token')} computed in {counted(len(steps), 'chunk')}{sizes}, {where}"

    def _blocks(self) -> str:
        """What it took since this was told last."""
        taken, evicted = self._num_blocks, self._num_evicted
        self._num_blocks = self._num_evicted = 0
        if not taken:
            return ""
        price = f", for which {counted(evicted, 'cached block')} had to go" if evicted else ""
        return f"; it took {counted(taken, 'block')}{price}"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def times(number: int) -> str:
    return "once" if number == 1 else "twice" if number == 2 else f"{number:,} times"


def named(names: list[str], most: int = 4) -> str:
    more = [f"{len(names) - most:,} more"] if len(names) > most else []
    *first, last = names[:most] + more
    return f"{', '.join(first)} and {last}" if first else last


def span(seconds: float) -> str:
    """A duration for people."""
    if seconds < 0.0095:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
