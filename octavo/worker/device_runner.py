"""The model runner of a device with memory of its own.

Steps of decodes alone, which are nearly all, start from rows on the device and come back as drawn tokens. Steps with
chunks, forks or prompt log-probabilities go the way of every runner, through a batch gathered on the host.
"""

from __future__ import annotations

import numpy as np

from octavo.kernels.ops import IntArray
from octavo.kernels.triton.model import TritonModel
from octavo.messages import StepPlan, StepResult
from octavo.sampling.sampler import Sampler
from octavo.worker.cuda_graphs import DecodeSteps, Variant, padded_size
from octavo.worker.device_rows import DeviceRows
from octavo.worker.model_runner import ModelRunner
from octavo.worker.request_states import RequestStates


class DeviceRunner(ModelRunner):
    """Owner of the rows on both sides, the sampler's columns and the model."""

    def __init__(self, model: TritonModel, states: RequestStates, sampler: Sampler, max_num_seqs: int) -> None:
        super().__init__(model, states, sampler, max_num_seqs)
        self._device_model = model
        self._rows = DeviceRows(states, sampler, model.staging, model.device)
        self._decodes = DecodeSteps(model, self._rows, max_num_seqs)
        self._max_num_seqs = max_num_seqs
        self._last_rows: list[int] = []
        self._last_array: IntArray = np.zeros(0, np.int32)
        self._last_variant: Variant = "plain"

    def _apply(self, plan: StepPlan) -> None:
        super()._apply(plan)
        for write in plan.block_writes:
            self._rows.write_blocks(write)
        for fork in plan.fork_rows:
            self._rows.fork(fork)
        self._rows.touch([new.row for new in plan.new_rows])
        if plan.new_rows or plan.fork_rows:
            self._last_rows = []  # the same rows may want something else now

    def _compute(self, plan: StepPlan) -> StepResult:
        if _is_decode(plan):
            return self._decode(plan)
        self._rows.touch(plan.rows)
        self._rows.touch(plan.sample_rows)
        return super()._compute(plan)

    def _decode(self, plan: StepPlan) -> StepResult:
        if plan.rows != self._last_rows:
            self._last_rows, self._last_array = plan.rows, np.array(plan.rows, np.int32)
            self._last_variant = self._variant(self._last_array)
        rows, variant = self._last_array, self._last_variant
        positions = self._states.num_tokens[rows]
        size = padded_size(len(rows), self._max_num_seqs)
        self._rows.flush(rows, size)
        logits = self._decodes.run(size, variant)
        entries = np.arange(len(rows), dtype=np.int32)
        if variant == "logits":
            batch = self._sampler.prepare(rows, entries, positions, self._states.token_ids)
            token_ids = self._device_model.sample(logits, batch)
            self._rows.touch(plan.rows)
        else:
            token_ids = self._decodes.tokens(len(rows))
        self._states.append(rows, positions, token_ids)
        return StepResult(plan.step_id, token_ids.tolist(), self._logprobs(rows, logits, entries, token_ids))

    def _variant(self, rows: IntArray) -> Variant:
        if self._sampler.has_special(rows):
            return "logits"
        columns = self._sampler.columns(rows)
        has_filters = (columns["top_p"] < 1) | (columns["top_k"] > 0) | (columns["min_p"] > 0)
        return "filtered" if has_filters.any() else "plain"


def _is_decode(plan: StepPlan) -> bool:
    """Every sequence of the step computes one token and draws the next."""
    return (
        len(plan.rows) == plan.num_tokens
        and plan.sample_rows == plan.rows
        and not plan.fork_rows
        and not plan.prompt_logprobs
    )
