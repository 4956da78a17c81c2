"""PoolingRunner: the runner of a model that embeds or classifies.

A step pools the hidden states of each text that it completes; a head for classes makes a number for each of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.device import StepBatch
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.models.classifier import Classifier
from octavo.models.pooling import PoolingKind
from octavo.worker.runner import HostRunner


class PoolingRunner(HostRunner):
    """Draws nothing: a result has numbers for each entry of the plan whose text is complete."""

    def __init__(
        self, *given: Any, kind: PoolingKind, classifier: Classifier | None, takes_types: bool, on_device: bool
    ) -> None:
        """given: as for a HostRunner. takes_types: the model tells a pair's texts apart by their types. on_device: the
        model's results are a device's tensors."""
        super().__init__(*given)
        self._kind = kind
        self._classifier = classifier
        self._takes_types = takes_types
        self._on_device = on_device
        num_rows = len(self._rows.states.num_tokens)
        self._pools_tokens = np.zeros(num_rows, np.bool_)
        self._second_texts = np.zeros(num_rows, np.int32)

    def submit(self, plan: StepPlan) -> PendingStep:
        for new in plan.new_rows:
            self._pools_tokens[new.row], self._second_texts[new.row] = new.pools_tokens, new.second_text
        return super().submit(plan)

    def _compute(self, plan: StepPlan) -> StepResult:
        batch = self._rows.states.gather(plan)
        self._model.forward(replace(batch, token_types=self._types(batch)))
        entries = np.flatnonzero(plan.num_logits).astype(np.int32)
        of_tokens = self._pools_tokens[batch.rows[entries]]
        pooled, texts = {}, entries[~of_tokens]
        if len(texts):
            vectors = self._classes(self._pool(batch, texts))
            pooled = {int(entry): vector.tobytes() for entry, vector in zip(texts, vectors, strict=True)}
        for entry in entries[of_tokens].tolist():
            tokens = np.arange(*batch.query_start_loc[entry : entry + 2], dtype=np.int32)
            pooled[entry] = self._classes(self._hidden(tokens)).tobytes()
        return StepResult(plan.step_id, [], [0] * (len(plan.rows) + 1), pooled=pooled)

    def _types(self, batch: StepBatch) -> IntArray:
        """Which of a pair's texts each token is of."""
        if not self._takes_types or not self._second_texts[batch.rows].any():
            return np.zeros(len(batch.input_ids), np.int32)
        begins = np.repeat(self._second_texts[batch.rows], np.diff(batch.query_start_loc))
        return ((begins > 0) & (batch.positions >= begins)).astype(np.int32)

    def _pool(self, batch: StepBatch, entries: IntArray) -> FloatArray:
        """[entries, H] float32."""
        starts, ends = batch.query_start_loc[entries], batch.query_start_loc[entries + 1]
        if self._kind == "CLS":
            return self._hidden(starts)
        if self._kind == "LAST":
            return self._hidden(ends - 1)
        hidden = self._hidden(np.concatenate([np.arange(*both) for both in zip(starts, ends, strict=True)]))
        counts = ends - starts
        sums: FloatArray = np.add.reduceat(hidden, np.cumsum(counts) - counts, axis=0, dtype=np.float32)
        sums /= counts[:, None]
        return sums

    def _hidden(self, tokens: IntArray) -> FloatArray:
        """[tokens, H] float32, of tokens of the step."""
        found: Any = self._model.logits(tokens.astype(np.int32, copy=False))
        return np.array(found.float().cpu().numpy() if self._on_device else found, np.float32)

    def _classes(self, hidden: FloatArray) -> FloatArray:
        return hidden if self._classifier is None else self._classifier(hidden)
