"""A plan being written: the columns of a StepPlan, and the sequences behind its rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.messages import BlockWrite, ForkRow, NewRow, StepPlan
from octavo.request import Sequence, SequenceId


@dataclass(slots=True, eq=False)
class PlanDraft:
    """The columns of a plan (messages.py), and who is behind them.

    granted: the sequences behind rows; with those that fork, all `drawing`. granted_ids: of the first, once they are
    written down. outdated: those of them that have got other tokens than this plan was made for: it brings them
    nothing. num_preempted: sequences that found no blocks while this plan was made; num_gave_way: those that lost their
    place to a better one. growth, joining_growth: tokens that the running, and those who join them, are expected to
    still take; the first is known once somebody asked to start.
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
    joining: list[Sequence] = field(default_factory=list)
    forked: list[Sequence] = field(default_factory=list)
    outdated: set[Sequence] = field(default_factory=set)
    granted_ids: tuple[SequenceId, ...] = ()
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

    def enter(self, sequence: Sequence) -> None:
        """A sequence takes its row with all its tokens so far."""
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
            )
        )

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """A child takes its row as a copy of its parent's, and draws from the parent's logits."""
        self.joining.append(child)
        self.forked.append(child)
        self.fork_rows.append(ForkRow(child.row, parent.row, child.index))
        self.num_draws.append(self.num_draws[self.rows.index(parent.row)])

    def seal(
        self,
        *,
        step_id: int,
        freed_rows: list[int],
        block_changes: tuple[list[BlockWrite], list[tuple[int, int]]],
        prompt_logprobs: list[int],
    ) -> StepPlan:
        """The plan. The draft stays behind, to say who its rows were."""
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
        )
