"""PoolingRunner: the runner of a model that embeds. A step pools the hidden states of each text that it completes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from octavo.kernels.device import StepBatch
from octavo.kernels.ops import FloatArray, IntArray
from octavo.messages import StepPlan, StepResult
from octavo.models.pooling import PoolingKind
from octavo.worker.runner import HostRunner


class PoolingRunner(HostRunner):
    """Draws nothing: a result has a vector for each entry of the plan whose text is complete."""

    def __init__(self, *given: Any, kind: PoolingKind) -> None:
        """given: as for a HostRunner."""
        super().__init__(*given)
        self._kind = kind

    def _compute(self, plan: StepPlan) -> StepResult:
        batch = self._rows.states.gather(plan)
        batch = replace(batch, token_types=np.zeros(len(batch.input_ids), np.int32))
        self._model.forward(batch)
        entries = np.flatnonzero(plan.num_logits).astype(np.int32)
        pooled = {}
        if len(entries):
            vectors = self._pool(batch, entries)
            pooled = {int(entry): vector.tobytes() for entry, vector in zip(entries, vectors, strict=True)}
        return StepResult(plan.step_id, [], [0] * (len(plan.rows) + 1), pooled=pooled)

    def _pool(self, batch: StepBatch, entries: IntArray) -> FloatArray:
        """[entries, H] float32."""
        starts, ends = batch.query_start_loc[entries], batch.query_start_loc[entries + 1]
        if self._kind == "CLS":
            return np.array(self._model.logits(starts), np.float32)
        if self._kind == "LAST":
            return np.array(self._model.logits(ends - 1), np.float32)
        hidden = self._model.logits(np.arange(len(batch.input_ids), dtype=np.int32))
        sums: FloatArray = np.add.reduceat(hidden, starts, axis=0, dtype=np.float32)
        sums /= (ends - starts)[:, None]
        return sums
