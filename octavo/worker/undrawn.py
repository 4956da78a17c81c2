"""UndrawnSteps: what a stage that draws nothing must still append to its rows.

    step 1 computed here  ──▶  later stages  ──▶  drawn in the last one
    rows  ◀── step 1's tokens ── told by a later plan (`StepPlan.drawn`)

No plan computes a sequence before its last token is told, so the rows never miss one.
"""

from __future__ import annotations

import numpy as np

from octavo.kernels.arrays import IntArray
from octavo.messages import StepPlan, StepResult
from octavo.worker.rows import RequestStates
from octavo.worker.runner import Draws


class UndrawnSteps:
    def __init__(self, states: RequestStates, max_num_seqs: int) -> None:
        self._states = states
        self._draws: dict[int, Draws] = {}  # by step
        self._entered = np.zeros(max_num_seqs, np.int64)  # the step in which each row's sequence has entered it

    def learn(self, plan: StepPlan) -> list[IntArray]:
        """Append what earlier steps have drawn, before a plan is applied, but for rows that other sequences have
        entered since -> the rows that changed."""
        changed = [self._append(result) for result in plan.drawn]
        self._entered[[new.row for new in plan.new_rows] + [fork.row for fork in plan.fork_rows]] = plan.step_id
        return changed

    def add(self, step_id: int, draws: Draws) -> None:
        """A step has passed."""
        self._draws[step_id] = draws

    def forget(self) -> None:
        """Of steps whose tokens nobody tells."""
        self._draws.clear()
        self._entered[:] = 0

    def _append(self, result: StepResult) -> IntArray:
        rows, positions = self._draws.pop(result.step_id).places_of(result)
        is_there = self._entered[rows] <= result.step_id
        rows, token_ids = rows[is_there], np.array(result.sampled_token_ids, np.int32)[is_there]
        self._states.append(rows, positions[is_there], token_ids)
        return rows
