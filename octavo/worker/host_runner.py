"""The runner of a device that computes in the host's memory: a step is done when `begin` returns.

plan -> rows updated -> batch gathered -> forward -> logits of the rows that sample -> tokens -> rows
"""

from __future__ import annotations

from octavo.config import LogprobsMode
from octavo.kernels.device import CompiledModel, KernelCompiler, StepLimits
from octavo.messages import DoneStep, StepPlan, StepResult
from octavo.worker.draws import Draws, keep_draws
from octavo.worker.live_rows import LiveRows
from octavo.worker.logprob_reporter import LogprobReporter


class HostRunner:
    """Owner of the rows and the bound model."""

    def __init__(self, model: CompiledModel, rows: LiveRows, max_num_seqs: int, logprobs_mode: LogprobsMode) -> None:
        self._model = model
        self._rows = rows
        self._logprobs = LogprobReporter(model, rows, max_num_seqs, logprobs_mode)

    def begin(self, plan: StepPlan) -> DoneStep:
        self._rows.apply(plan, self._model)
        return DoneStep(self._compute(plan) if plan.rows else StepResult(plan.step_id, []))

    def warm_up(self, limits: StepLimits, compiler: KernelCompiler | None) -> None:
        """Nothing: kernels were built before they were loaded, and the first step is like any other."""

    def close(self) -> None:
        """Let go of the model, whose weights and KV blocks go with it."""
        del self._model, self._logprobs

    def _compute(self, plan: StepPlan) -> StepResult:
        batch = self._rows.states.gather(plan)
        self._model.forward(batch)
        prompt_logprobs = {entry: self._logprobs.of_prompt(batch, entry) for entry in plan.prompt_logprobs}
        return keep_draws(plan, Draws.of(plan, batch), self._model, self._rows, self._logprobs, prompt_logprobs)
