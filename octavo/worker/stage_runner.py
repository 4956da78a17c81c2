"""StageRunner: the runner of a stage of a pipeline, on a host.

    stage 0     tokens ─▶ layers 0 .. 3 ─▶ hidden states ─┐                 ┌─▶ rows of stage 0, from a later plan
    stage 1                                                └▶ layers 4 .. 7 ─▶ tokens

Every stage keeps the same rows. The last one draws, and the others append what it has drawn (`undrawn.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from octavo.distributed.stage_link import StageLink
from octavo.distributed.world import World
from octavo.kernels.device import StepBatch
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.worker.runner import Draws, HostRunner
from octavo.worker.undrawn import UndrawnSteps


class StageRunner(HostRunner):
    """given: as for a HostRunner. width: columns of the hidden states."""

    def __init__(self, *given: Any, world: World, link: StageLink, width: int) -> None:
        super().__init__(*given)
        self._world, self._link, self._width = world, link, width
        self._undrawn = UndrawnSteps(self._rows.states, len(self._rows.states.num_tokens))

    def submit(self, plan: StepPlan) -> PendingStep:
        if not self._world.is_last_stage:
            self._undrawn.learn(plan)
        return super().submit(plan)

    def _compute(self, plan: StepPlan) -> StepResult:
        batch = self._rows.states.gather(plan)
        if self._world.stage > 0:
            hidden_states = np.empty((len(batch.input_ids), self._width), np.float32)
            self._link.receive(torch.from_numpy(hidden_states))
            batch = replace(batch, hidden_states=hidden_states)
        self._model.forward(batch)
        return self._drawn(plan, batch) if self._world.is_last_stage else self._passed_on(plan, batch)

    def _passed_on(self, plan: StepPlan, batch: StepBatch) -> StepResult:
        hidden_states = self._model.logits(np.arange(len(batch.input_ids), dtype=np.int32))
        self._link.send(torch.from_numpy(hidden_states))
        self._undrawn.add(plan.step_id, Draws.of(plan, batch))
        return StepResult(plan.step_id, [])
