"""The two messages between scheduler and worker: a StepPlan goes down, a StepResult comes up.

Both are plain data: ints, floats, lists of them, and SamplingParams, so that they can be sent to another process.
A plan carries changes, never what the worker already holds: a sequence's tokens are sent once, when it gets its row.
The worker keeps the tokens that it samples afterwards, and they are never sent down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import Thoughts

END_OF_GRAMMAR = -2  # ends a run whose grammar allows no other token


@dataclass(frozen=True, slots=True)
class AdapterRead:
    """A worker shall read an adapter, beside its steps: from this folder, whose content must have this digest. key: the
    number by which it keeps it. dropped: keys of others that it no longer keeps."""

    key: int
    path: str
    digest: str
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AdaptersRead:
    """Which adapters has a worker read? It waits so long for one."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AdapterLoad:
    """A slot gets another adapter, which the worker has read. key: by which it keeps it."""

    slot: int
    key: int


@dataclass(frozen=True, slots=True)
class NewRow:
    """A sequence enters a row: all its tokens so far (more than the prompt after a preemption). grammar: what its
    output must match, as text that a GrammarCompiler reads. thoughts: what comes before that. pools_tokens: the numbers
    of each token are wanted, instead of the text's. second_text: where the second of a pair begins; 0: there is one.
    adapter: the slot of its adapter; -1: it has none."""

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling_params: SamplingParams
    seed: int
    sample_index: int
    stop_token_ids: frozenset[int] = frozenset()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    grammar: str | None = None
    thoughts: Thoughts | None = None
    pools_tokens: bool = False
    second_text: int = 0
    adapter: int = -1


@dataclass(frozen=True, slots=True)
class ForkRow:
    """A sequence enters a row as a copy of another's tokens, block tables and sampling parameters, before the step
    runs. The fork samples its own next token from the parent's logits."""

    row: int
    parent_row: int
    sample_index: int


@dataclass(frozen=True, slots=True)
class BlockWrite:
    """Block table entries of one row and cache group from `start` on become `block_ids`."""

    row: int
    group: int
    start: int
    block_ids: list[int]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. A worker applies it in this order: freed, new, beams, writes, forks, copies, adapters, compute,
    draw.

    Entry i of `rows` and of the columns after it is one sequence of the step: compute its num_scheduled_tokens[i]
    tokens from position num_computed_tokens[i] on, make logits of the last num_logits[i] of them, and draw a token from
    each of the last num_draws[i] rows of logits. A chunk in the middle of a prompt draws none, a decode draws one.
    Fork f is entry len(rows) + f of num_draws alone: it draws from its parent's logits.
    spec_token_ids: by entry, guesses at its next tokens, which are the last ones it computes; one that has n of them
    draws n + 1. prompt_logprobs: entries whose prompt positions want log-probabilities.

    Beams draw nothing: a step brings the best tokens of each, and the next step's plan says which of them go on where.
    Row beam_rows[i] becomes row beam_parents[i], its own or another, as that was before the step, with the token
    beam_token_ids[i] behind it. candidates: by entry, how many of the best next tokens are wanted with their
    log-probabilities; -1 is the whole vocabulary. Their logits are not among num_logits.

    drawn: for the stages of a pipeline that draw nothing, what the last one has drawn in earlier steps.
    """

    step_id: int
    freed_rows: list[int] = field(default_factory=list)
    new_rows: list[NewRow] = field(default_factory=list)
    block_writes: list[BlockWrite] = field(default_factory=list)
    fork_rows: list[ForkRow] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)
    num_scheduled_tokens: list[int] = field(default_factory=list)
    num_logits: list[int] = field(default_factory=list)
    num_draws: list[int] = field(default_factory=list)
    spec_token_ids: dict[int, list[int]] = field(default_factory=dict)
    prompt_logprobs: list[int] = field(default_factory=list)
    beam_rows: list[int] = field(default_factory=list)
    beam_parents: list[int] = field(default_factory=list)
    beam_token_ids: list[int] = field(default_factory=list)
    candidates: dict[int, int] = field(default_factory=dict)
    drawn: tuple[StepResult, ...] = ()
    adapters: list[AdapterLoad] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(self.num_scheduled_tokens)


@dataclass(frozen=True, slots=True)
class LogprobRow:
    """Log-probabilities at one position: the chosen token first, then the best ones, then those asked for by id.
    asked_ranks: the ranks of the last."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int  # of the chosen token, 1 = best
    asked_ranks: list[int] = field(default_factory=list)


#: token ids, and their log-probabilities
Candidates = tuple[list[int], list[float]]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced: for each entry of plan.num_draws a run, the tokens that its row has kept.

    Run i is sampled_token_ids[offsets[i] : offsets[i + 1]]; no offsets: each run is one token, as in a step of decodes.
    A run is longer than one token if guesses were right or tokens were forced. It is empty if nothing was drawn, or if
    the row had got other tokens than the plan was made for. -1 ends a run if the logits were NaN or left no token to
    draw; END_OF_GRAMMAR, behind its last token, if its grammar lets nothing follow. num_forced: by run, how many of its
    last tokens were not drawn, as its grammar allows no others. pooled: by entry, the float32 numbers of a text that
    this step has completed. faults: by run, why its -1, where a function of its request's failed.
    logprobs: by run, a row for each drawn token, if asked for. prompt_logprobs: by entry, a row for each scheduled
    token: it is about the prompt token after that. candidates: by entry, the ids and log-probabilities of the best next
    tokens, best first.
    """

    step_id: int
    sampled_token_ids: list[int]
    offsets: list[int] = field(default_factory=list)
    logprobs: dict[int, list[LogprobRow]] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[LogprobRow]] = field(default_factory=dict)
    candidates: dict[int, Candidates] = field(default_factory=dict)
    num_forced: dict[int, int] = field(default_factory=dict)
    pooled: dict[int, bytes] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)


class PendingStep(Protocol):
    """A StepResult on its way."""

    def result(self) -> StepResult:
        """Wait for the step's end. Raises what went wrong in it."""
