"""StageRunner: the runner of a stage of a pipeline, on a host.

    stage 0     tokens ─▶ layers 0 .. 3 ─▶ hidden states ─┐                 ┌─▶ rows of stage 0, from a later plan
    stage 1                                                └▶ layers 4 .. 7 ─▶ tokens

Every stage keeps the same rows. The last one draws, and the others append what it has drawn once a plan tells them
(`StepPlan.drawn`). No plan computes a sequence before its last token is told, so they never miss one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from octavo.config import LogprobsMode
from octavo.distributed.world import World
from octavo.kernels.device import CompiledModel, StepBatch
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.worker.rows import LiveRows
from octavo.worker.runner import Draws, HostRunner
from octavo.worker.step_faults import Explain

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives


class StageRunner(HostRunner):
    """width: columns of the hidden states. They go to the rank of the next stage that has the same tensor rank."""

    def __init__(
        self,
        model: CompiledModel,
        rows: LiveRows,
        max_num_seqs: int,
        logprobs_mode: LogprobsMode,
        explain: Explain | None,
        world: World,
        ranks: Collectives,
        width: int,
    ) -> None:
        super().__init__(model, rows, max_num_seqs, logprobs_mode, explain)
        self._world, self._ranks, self._width = world, ranks, width
        self._undrawn: dict[int, Draws] = {}  # by step
        self._entered = np.zeros(max_num_seqs, np.int64)  # the step in which each row's sequence has entered it

    def submit(self, plan: StepPlan) -> PendingStep:
        if not self._world.is_last_stage:
            for result in plan.drawn:
                self._append(result)
            self._entered[[new.row for new in plan.new_rows] + [fork.row for fork in plan.fork_rows]] = plan.step_id
        return super().submit(plan)

    def _compute(self, plan: StepPlan) -> StepResult:
        world, batch = self._world, self._rows.states.gather(plan)
        if world.stage > 0:
            hidden_states = np.empty((len(batch.input_ids), self._width), np.float32)
            self._ranks.receive(hidden_states, world.rank - world.tensor_parallel_size)
            batch = replace(batch, hidden_states=hidden_states)
        self._model.forward(batch)
        return self._drawn(plan, batch) if world.is_last_stage else self._passed_on(plan, batch)

    def _passed_on(self, plan: StepPlan, batch: StepBatch) -> StepResult:
        hidden_states = self._model.logits(np.arange(len(batch.input_ids), dtype=np.int32))
        self._ranks.send(np.array(hidden_states), self._world.rank + self._world.tensor_parallel_size)
        self._undrawn[plan.step_id] = Draws.of(plan, batch)
        return StepResult(plan.step_id, [])

    def _append(self, result: StepResult) -> None:
        """What an earlier step has drawn, except for rows that other sequences have entered since."""
        draws = self._undrawn.pop(result.step_id)
        kept, token_ids = draws.kept_by(result), np.array(result.sampled_token_ids, np.int32)
        rows, positions = draws.rows[kept], draws.positions[kept]
        is_there = self._entered[rows] <= result.step_id
        self._rows.states.append(rows[is_there], positions[is_there], token_ids[is_there])
