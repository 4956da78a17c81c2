"""What crosses between the part that decides and the part that carries: StepPlan down, StepResult up.

Both are plain data: ints, floats, lists of them, and SamplingParams, so that they can cross a process.
A plan carries what changed, never what the worker already holds: a sequence's tokens are sent once, when
it gets its row; the tokens sampled afterwards are the worker's own and never travel down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from octavo.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class NewRow:
    """A sequence enters a row: all its tokens so far (more than the prompt after a preemption)."""

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling_params: SamplingParams
    seed: int
    sample_index: int
    stop_token_ids: frozenset[int] = frozenset()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class ForkRow:
    """A sequence enters a row as a copy of another's tokens, block tables and sampling parameters.
    Applied before the step runs; the fork samples its own next token from the parent's logits."""

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
    """One step, decided. Applied in this order: freed, new, writes, forks, copies, compute, sample.

    Entry i of rows, num_computed_tokens and num_scheduled_tokens is one sequence of the step: compute its
    tokens num_computed_tokens[i] .. + num_scheduled_tokens[i] - 1. Entry j of sample_rows is one token to
    draw, from the logits after the last scheduled token of entry sample_sources[j]: its own, or, for a
    fork, its parent's. prompt_logprobs lists entries i whose prompt positions want log-probabilities.
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
    sample_rows: list[int] = field(default_factory=list)
    sample_sources: list[int] = field(default_factory=list)
    prompt_logprobs: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(self.num_scheduled_tokens)


@dataclass(frozen=True, slots=True)
class LogprobRow:
    """Log-probabilities at one position: the chosen token first, then the best ones, then those asked for by id.

    asked_ranks: of the last."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int  # of the chosen token, 1 = best
    asked_ranks: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced. sampled_token_ids[j] belongs to plan.sample_rows[j]; -1 means that entry's
    logits were NaN or left no token to draw. logprobs: j -> row, where asked for. prompt_logprobs:
    entry i -> one row per scheduled token, for the prompt token that follows it."""

    step_id: int
    sampled_token_ids: list[int]
    logprobs: dict[int, LogprobRow] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[LogprobRow]] = field(default_factory=dict)


class PendingStep(Protocol):
    """A StepResult on its way."""

    def result(self) -> StepResult:
        """Wait for the step's end. Raises what went wrong in it."""


@dataclass(frozen=True, slots=True)
class DoneStep:
    """A PendingStep that is nothing to wait for."""

    done: StepResult

    def result(self) -> StepResult:
        return self.done
