"""The model runner: one StepPlan in, one StepResult out.

plan -> rows updated -> batch gathered -> forward -> logits of the rows that sample -> tokens -> rows
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from octavo.config import LogprobsMode
from octavo.kernels.cuda.compile_ahead import KernelCompiler
from octavo.kernels.ops import CompiledModel, IntArray, Logits, StepBatch, StepLimits
from octavo.messages import LogprobRow, PendingStep, StepPlan, StepResult
from octavo.sampling.sampler import NO_LOGPROBS, Sampler
from octavo.worker.logprob_rows import logprob_rows, with_scored_ids
from octavo.worker.request_states import RequestStates
from octavo.worker.warm_up import warm_up_plans

LOGPROB_TILE = 64  # rows of logits held at once at most, so that long prompts need no [T, V] array


@dataclass(frozen=True, slots=True)
class DoneStep:
    """A PendingStep that is nothing to wait for."""

    done: StepResult

    def result(self) -> StepResult:
        return self.done


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """The tokens a step draws, N of them. last_tokens [M]: the step's tokens whose logits are wanted."""

    rows: IntArray
    positions: IntArray  # that the new tokens will have
    logits_rows: IntArray  # which of the M rows of logits each is drawn from
    last_tokens: IntArray

    @classmethod
    def of(cls, plan: StepPlan, batch: StepBatch) -> Draws:
        sources = np.array(plan.sample_sources, np.int32)
        last_tokens = batch.query_start_loc[sources + 1] - 1
        logits_rows = np.arange(len(sources), dtype=np.int32)
        if plan.fork_rows:  # forks of one prompt share its row of logits
            last_tokens, inverse = np.unique(last_tokens, return_inverse=True)
            logits_rows = inverse.astype(np.int32)
        return cls(np.array(plan.sample_rows, np.int32), batch.seq_lens[sources], logits_rows, last_tokens)


class ModelRunner:
    """Owner of the rows, the sampler's columns and the compiled model."""

    def __init__(
        self,
        model: CompiledModel,
        states: RequestStates,
        sampler: Sampler,
        max_num_seqs: int,
        *,
        logprobs_mode: LogprobsMode,
    ) -> None:
        self._model = model
        self._states = states
        self._sampler = sampler
        self._logprob_tile = min(LOGPROB_TILE, max_num_seqs)
        self._reports_logits = logprobs_mode in ("raw_logits", "processed_logits")
        self._reports_processed = logprobs_mode in ("processed_logprobs", "processed_logits")
        self._num_prompt_logprobs: dict[int, int] = {}  # row -> how many, where asked for

    def execute(self, plan: StepPlan) -> StepResult:
        self._apply(plan)
        return self._compute(plan) if plan.rows else StepResult(plan.step_id, [])

    def begin(self, plan: StepPlan) -> PendingStep:
        return DoneStep(self.execute(plan))

    def warm_up(self, limits: StepLimits, compiler: KernelCompiler | None) -> None:
        """Run a step of every kind. compiler: for a device, whose kernels may not be there yet."""
        for plan in warm_up_plans(limits):
            self.execute(plan)

    def close(self) -> None:
        """Let go of the model, whose weights and KV blocks go with it."""
        del self._model

    def _compute(self, plan: StepPlan) -> StepResult:
        batch = self._states.gather(plan)
        self._model.forward(batch)
        prompt_logprobs = {entry: self._prompt_logprobs(batch, entry) for entry in plan.prompt_logprobs}
        if not plan.sample_rows:
            return StepResult(plan.step_id, [], {}, prompt_logprobs)
        token_ids, logprobs = self._sample(plan, batch)
        return StepResult(plan.step_id, token_ids, logprobs, prompt_logprobs)

    def _apply(self, plan: StepPlan) -> None:
        """Bring the rows up to date, in the order `StepPlan` states."""
        for row in plan.freed_rows:
            self._num_prompt_logprobs.pop(row, None)
        for new in plan.new_rows:
            self._states.enter(new)
            self._sampler.enter(new)
            if new.sampling_params.prompt_logprobs is not None:
                self._num_prompt_logprobs[new.row] = new.sampling_params.prompt_logprobs
        for write in plan.block_writes:
            self._states.write_blocks(write)
        for fork in plan.fork_rows:
            self._states.fork(fork)
            self._sampler.fork(fork)
        if plan.copies:
            pairs = np.array(plan.copies, np.int32)
            self._model.copy_blocks(np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]))

    def _sample(self, plan: StepPlan, batch: StepBatch) -> tuple[list[int], dict[int, LogprobRow]]:
        """Draw a token for every sampling row and append it there."""
        draws = Draws.of(plan, batch)
        logits = self._model.logits(draws.last_tokens)
        sampling = self._sampler.prepare(draws.rows, draws.logits_rows, draws.positions, self._states.token_ids)
        token_ids = self._model.sample(logits, sampling)
        self._states.append(draws.rows, draws.positions, token_ids)
        return token_ids.tolist(), self._logprobs(draws.rows, draws.positions, logits, draws.logits_rows, token_ids)

    def _logprobs(
        self, rows: IntArray, positions: IntArray, logits: Logits, logits_rows: IntArray, token_ids: IntArray
    ) -> dict[int, LogprobRow]:
        """By entry, for those that asked. The tokens before those drawn are on the host."""
        ks = self._sampler.num_logprobs(rows)
        wanted = np.flatnonzero(ks != NO_LOGPROBS)
        # processed logits are float32 and take memory of their own
        size = self._logprob_tile if self._reports_processed else max(1, len(wanted))
        found: dict[int, LogprobRow] = {}
        for start in range(0, len(wanted), size):
            some = wanted[start : start + size]
            own = self._reported_logits(rows[some], positions[some], logits, logits_rows[some], token_ids[some])
            scored_ids, tile, as_logits = self._sampler.scored_ids(rows[some]), self._logprob_tile, self._reports_logits
            reported = logprob_rows(self._model, own, token_ids[some], ks[some], as_logits=as_logits)
            reported = with_scored_ids(self._model, own, reported, scored_ids, tile, as_logits=as_logits)
            found.update(zip(some.tolist(), reported, strict=True))
        return found

    def _reported_logits(
        self, rows: IntArray, positions: IntArray, logits: Logits, logits_rows: IntArray, token_ids: IntArray
    ) -> Logits:
        """One row an entry: the model's, or what its token was drawn from."""
        if not self._reports_processed:
            return logits[logits_rows]
        sampling = self._sampler.prepare(rows, logits_rows, positions, self._states.token_ids)
        return self._model.processed_logits(logits, sampling, token_ids)

    def _prompt_logprobs(self, batch: StepBatch, entry: int) -> list[LogprobRow]:
        """For each scheduled prompt token that another prompt token follows: that token's log-probabilities.
        They are raw in every mode: nothing of a prompt is drawn."""
        row = batch.rows[entry]
        begin, end = batch.query_start_loc[entry], batch.query_start_loc[entry + 1]
        last_prompt = self._states.num_prompt_tokens[row] - 1
        end = min(end, begin + max(0, last_prompt - batch.positions[begin]))
        k = self._num_prompt_logprobs[int(row)]
        found: list[LogprobRow] = []
        for tile in range(begin, end, self._logprob_tile):
            indices = np.arange(tile, min(tile + self._logprob_tile, end), dtype=np.int32)
            following = self._states.token_ids[row, batch.positions[indices] + 1]
            logits, ks = self._model.logits(indices), np.full(len(indices), k)
            found += logprob_rows(self._model, logits, following, ks, as_logits=self._reports_logits)
        return found
