"""One step as the scheduler sees it: the plan being written, and what its result brings each sequence.

A plan carries rows, never sequences; so its draft is kept until the result comes, to say whose rows they were.

A sequence ends, in this order, with a token that could not be drawn (an error), with a stop token once min_tokens are
out, at its length, where it has repeated itself too often, or where its grammar ends. Stop strings need text: the
output side finds them, and calls `Scheduler.finish_sequence`.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Listlike
from dataclasses import dataclass, field
from itertools import pairwise

from msgspec import Struct

from octavo.messages import END_OF_GRAMMAR, AdapterLoad, BlockWrite, ForkRow, LogprobRow, NewRow, StepPlan, StepResult
from octavo.observe.events import Sampled, Scheduled
from octavo.outputs import FinishReason
from octavo.repetition import RepeatCounts
from octavo.request import Sequence

NO_TOKEN = -1  # what a step returns where the logits were NaN or every token was banned

#: why a sequence ended, and the token or the fault that ended it
Ending = tuple[FinishReason, int | str | None]

NO_TOKEN_ENDING: Ending = (
    "error",
    "no token could be drawn: the logits were NaN or every token was banned "
    "(check structured_outputs, allowed_token_ids, bad_words and logit_bias, or the model's weights)",
)


@dataclass(slots=True, eq=False)
class PlanDraft:
    """The columns of a StepPlan, and the sequences behind them.

    granted: the sequences behind rows; with the forked ones they are `drawing`. granted_ids: their ids, once the event
    log has them. outdated: those that have got other tokens since the plan was made; its result brings them nothing.
    num_preempted: sequences that found no blocks for this plan. num_gave_way: those that lost their place to a better
    one. growth, joining_growth: tokens that the running sequences, and those that join them, are expected to take; the
    first is None until a sequence asks to start.
    """

    granted: list[Sequence] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)
    num_scheduled_tokens: list[int] = field(default_factory=list)
    num_logits: list[int] = field(default_factory=list)
    num_draws: list[int] = field(default_factory=list)
    spec_token_ids: dict[int, list[int]] = field(default_factory=dict)
    new_rows: list[NewRow] = field(default_factory=list)
    fork_rows: list[ForkRow] = field(default_factory=list)
    beam_rows: list[int] = field(default_factory=list)
    beam_parents: list[int] = field(default_factory=list)
    beam_token_ids: list[int] = field(default_factory=list)
    candidates: dict[int, int] = field(default_factory=dict)
    joining: list[Sequence] = field(default_factory=list)
    forked: list[Sequence] = field(default_factory=list)
    outdated: set[Sequence] = field(default_factory=set)
    granted_ids: tuple[int, ...] = ()
    num_preempted: int = 0
    num_gave_way: int = 0
    growth: int | None = None
    joining_growth: int = 0

    @property
    def drawing(self) -> list[Sequence]:
        """The sequences behind num_draws."""
        return self.granted + self.forked if self.forked else self.granted

    def grant(self, sequence: Sequence, num_tokens: int, num_logits: int) -> None:
        """Compute `num_tokens` more of a sequence, and draw from the last `num_logits` of them, if it wants tokens."""
        self.granted.append(sequence)
        self.rows.append(sequence.row)
        self.num_computed_tokens.append(sequence.num_computed_tokens)
        self.num_scheduled_tokens.append(num_tokens)
        self.num_logits.append(num_logits)
        self.num_draws.append(num_logits if sequence.request.max_output_tokens else 0)

    def grant_decodes(self, sequences: list[Sequence]) -> None:
        """Compute the last token of each of these, and draw the next."""
        ones = [1] * len(sequences)
        self.granted += sequences
        self.rows += [sequence.row for sequence in sequences]
        self.num_computed_tokens += [sequence.num_computed_tokens for sequence in sequences]
        self.num_scheduled_tokens += ones
        self.num_logits += ones
        self.num_draws += ones

    def enter(self, sequence: Sequence, adapter: int = -1) -> None:
        """A sequence takes its row with all its tokens so far. adapter: the slot of its adapter."""
        request = sequence.request
        self.joining.append(sequence)
        self.new_rows.append(
            NewRow(
                row=sequence.row,
                token_ids=list(sequence.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                sampling_params=request.sampling_params,
                seed=request.seed,
                sample_index=sequence.index,
                stop_token_ids=request.stop_token_ids,
                bad_word_ids=request.bad_word_ids,
                grammar=request.grammar,
                thoughts=request.thoughts,
                adapter=adapter,
                pools_tokens=request.pooling_params is not None and request.pooling_params.of_tokens,
                second_text=request.second_text,
            )
        )

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """A child takes its row as a copy of its parent's, and draws from the parent's logits."""
        self.joining.append(child)
        self.forked.append(child)
        self.fork_rows.append(ForkRow(child.row, parent.row, child.index))
        child.num_pending = self.num_draws[self.rows.index(parent.row)]
        self.num_draws.append(child.num_pending)

    def advance(self) -> None:
        """Count the step as computed; plans are carried out in order, so later plans may build on it."""
        columns = self.granted, self.num_scheduled_tokens, self.num_draws
        for sequence, num_tokens, num_draws in zip(*columns, strict=True):
            sequence.num_computed_tokens += num_tokens
            sequence.num_pending += num_draws

    def end_of_prompt(self, entry: int, sequence: Sequence) -> Ending | None:
        """How a sequence ends that has drawn nothing, if only its prompt was wanted: with the last part of it. This
        plan says which that is; a later one, planned while this one ran, has moved the sequence on."""
        if sequence.request.max_output_tokens:
            return None
        end = self.num_computed_tokens[entry] + self.num_scheduled_tokens[entry]
        return ("stop", None) if end == sequence.num_tokens else None

    def seal(
        self,
        *,
        step_id: int,
        freed_rows: list[int],
        block_changes: tuple[list[BlockWrite], list[tuple[int, int]]],
        prompt_logprobs: list[int],
        adapters: Listlike[AdapterLoad] = (),
    ) -> StepPlan:
        block_writes, copies = block_changes
        return StepPlan(
            step_id=step_id,
            freed_rows=freed_rows,
            new_rows=self.new_rows,
            block_writes=block_writes,
            fork_rows=self.fork_rows,
            copies=copies,
            rows=self.rows,
            num_computed_tokens=self.num_computed_tokens,
            num_scheduled_tokens=self.num_scheduled_tokens,
            num_logits=self.num_logits,
            num_draws=self.num_draws,
            spec_token_ids=self.spec_token_ids,
            prompt_logprobs=prompt_logprobs,
            beam_rows=self.beam_rows,
            beam_parents=self.beam_parents,
            beam_token_ids=self.beam_token_ids,
            candidates=self.candidates,
            adapters=list(adapters),
        )

    def sampled(
        self,
        time: float,
        result: StepResult,
        updates: Collection[SequenceUpdate],
        *,
        has_left: bool,
        keeps_token_ids: bool,
    ) -> Sampled:
        """The event of the result. Mostly each sequence of the step got one token; then the ids are those of its plan's
        event. has_left: a sequence ended, so perhaps without a token."""
        token_ids = result.sampled_token_ids
        all_drew = len(updates) == len(token_ids) == len(self.granted) and not result.offsets
        if all_drew and self.granted_ids and not (has_left and NO_TOKEN in token_ids):
            tokens = tuple(token_ids) if keeps_token_ids else ()
            return Sampled(time, result.step_id, self.granted_ids, len(self.granted_ids), (), tokens)
        runs = [(one.sequence.sequence_id, one.token_ids) for one in updates if one.token_ids]
        lens = tuple([len(token_ids) for _, token_ids in runs])
        num_tokens, run_lens = sum(lens), () if max(lens, default=1) == 1 else lens
        tokens = tuple([one for _, token_ids in runs for one in token_ids]) if keeps_token_ids else ()
        ids, rest = tuple([one for one, _ in runs]), (num_tokens, run_lens, tokens)
        kept = dict(zip(ids, lens, strict=True)) if result.num_forced else {}  # the first of a run is drawn
        forced = [(self.drawing[run].sequence_id, num) for run, num in result.num_forced.items()]
        num_forced = sum(min(num, kept.get(one, 1) - 1) for one, num in forced)
        return Sampled(time, result.step_id, ids, *rest, num_forced)


class ScheduledEvents:
    """Makes the event of each plan. While the same sequences decode, its columns are the last one's."""

    def __init__(self) -> None:
        self._granted: list[Sequence] = []
        self._last = Scheduled(0.0, 0, (), (), (), 0, 0)
        self._next_sum = -1  # of num_computed, if every sequence goes on where it was

    def event(self, time: float, draft: PlanDraft, step: int, num_waiting: int, num_free_blocks: int) -> Scheduled:
        """If nobody has joined, each sequence is where it would go on or was set back; so if their sum is right, no one
        was."""
        num_computed, num_tokens, last = draft.num_computed_tokens, draft.num_scheduled_tokens, self._last
        total, num_seqs = sum(num_computed), len(num_computed)
        is_decode = sum(num_tokens) == num_seqs
        goes_on = is_decode and total == self._next_sum and step == last.step + 1 and not draft.joining
        if goes_on and draft.granted == self._granted:
            columns, ahead = (last.sequence_ids, last.num_before, last.num_tokens), last.ahead + 1
        else:
            ids = tuple([sequence.sequence_id for sequence in draft.granted])
            columns, ahead = (ids, tuple(num_computed), tuple(num_tokens)), 0
            self._granted = draft.granted
        self._next_sum = total + num_seqs if is_decode else -1
        draft.granted_ids = columns[0]
        self._last = Scheduled(time, step, *columns, num_waiting, num_free_blocks, ahead)
        return self._last


class SequenceUpdate(Struct, frozen=True, gc=False):
    """What one step brought one sequence; whether it ended is written on the sequence. A struct, as each token makes
    one, and a tuple with names takes six times as long to make.

    token_ids: those it has kept. logprobs: their log-probabilities, if it asked for them. prompt_logprobs: those of the
    next prompt tokens. pooled: its numbers, if it asked for an embedding or classes.
    """

    sequence: Sequence
    token_ids: list[int]
    logprobs: Listlike[LogprobRow] = ()
    prompt_logprobs: Listlike[LogprobRow] = ()
    pooled: bytes | None = None


def runs_of(result: StepResult) -> list[list[int]]:
    token_ids, offsets = result.sampled_token_ids, result.offsets
    if not offsets:
        return [[token_id] for token_id in token_ids]
    return [token_ids[start:end] for start, end in pairwise(offsets)]


def keep_run(sequence: Sequence, run: list[int]) -> Ending | None:
    """Append a run's tokens up to one that ends the sequence; those after it are deleted from the run."""
    token_ids = sequence.token_ids
    num_before = len(token_ids)
    for token_id in run:
        if token_id == NO_TOKEN:
            ending: Ending | None = NO_TOKEN_ENDING
        elif token_id == END_OF_GRAMMAR:
            ending = "stop", None
        else:
            token_ids.append(token_id)
            ending = find_ending(sequence)
        if ending is not None:
            del run[len(token_ids) - num_before :]
            return ending
    return None


def num_right(guesses: list[int], run: list[int]) -> int:
    """How many of the guesses at a run's tokens were right, from the first on."""
    pairs = enumerate(zip(guesses, run, strict=False))
    return next((place for place, (guess, token_id) in pairs if guess != token_id), min(len(guesses), len(run)))


def find_ending(sequence: Sequence) -> Ending | None:
    """How the sequence ends with its last token, or None. A stop names its token, unless it is the model's own."""
    request = sequence.request
    token_id = sequence.token_ids[-1]
    if token_id in request.stop_token_ids and sequence.num_output_tokens >= request.sampling_params.min_tokens:
        is_end = token_id in request.eos_token_ids and not request.sampling_params.ignore_eos
        return "stop", None if is_end else token_id
    if len(sequence.token_ids) >= sequence.max_len:
        return "length", None
    if request.sampling_params.repetition_detection is not None and repeats_itself(sequence):
        return "repetition", "repetition_detected"
    return None


def repeats_itself(sequence: Sequence) -> bool:
    """Whether a sequence whose request has repetition_detection does, once min_tokens are out."""
    request = sequence.request
    asked = request.sampling_params.repetition_detection
    assert asked is not None, f"request {request.request_id!r} has no repetition_detection"
    if sequence.repeats is None:
        sequence.repeats = RepeatCounts(asked, request.first_len)
    found = sequence.repeats.ends_with(sequence.token_ids)
    return found and sequence.num_output_tokens >= request.sampling_params.min_tokens
