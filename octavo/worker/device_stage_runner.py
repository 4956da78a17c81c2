"""The runners of a pipeline's stages on a device: PassingRunner's stages draw nothing, LastStageRunner's do.

    stage 0 (passes)   [ step 1 ........ ][ step 2 ........ ][ step 3 ...         a graph holds a stage's own kernels;
    hidden states                        ╲                  ╲                     what passes between stages is launched
    stage 1 (last)                        [ step 1 .. draw ] [ step 2 .. draw ]   before and after it, in stream order

Steps are launched as by `device_runner.py`, and each host is ahead of its device. A step waits on the device for the
hidden states of the stage before. The rows of a stage that draws nothing are the host's: they learn tokens from plans
(`undrawn.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo.distributed.stage_link import StageLink
from octavo.kernels.arrays import IntArray
from octavo.kernels.device import KernelCompiler, StepBatch, StepLimits
from octavo.kernels.triton.linear.row_counts import padded_size
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.worker.device_runner import DeviceRunner
from octavo.worker.launched_steps import fault_of
from octavo.worker.runner import Draws
from octavo.worker.undrawn import UndrawnSteps


@dataclass(frozen=True, slots=True)
class _PassedStep:
    """A PendingStep that has been launched. launched: an event on the device; None: it is the host."""

    step_id: int
    launched: torch.cuda.Event | None

    def result(self) -> StepResult:
        if self.launched is not None:
            try:
                self.launched.synchronize()
            except RuntimeError as error:
                raise fault_of(error) from error
        return StepResult(self.step_id, [])


class LastStageRunner(DeviceRunner):
    """link: None: it rehearses, alone."""

    def __init__(self, *given: Any, link: StageLink | None, **options: Any) -> None:
        super().__init__(*given, **options)
        self._link = link

    def _begin_decodes(self, plan: StepPlan) -> PendingStep:
        self._receive_decodes(np.array(plan.rows, np.int32))
        return super()._begin_decodes(plan)

    def _begin_beams(self, plan: StepPlan) -> PendingStep:
        self._receive_decodes(np.array(plan.rows, np.int32))
        return super()._begin_beams(plan)

    def _begin_any(self, plan: StepPlan) -> PendingStep:
        self._receive_chunks(plan.num_tokens, np.array(plan.rows, np.int32))
        return super()._begin_any(plan)

    def _receive_decodes(self, rows: IntArray) -> None:
        if self._link is not None:
            size = padded_size(len(rows), self._max_num_seqs, self._model.row_counts)
            has_adapters = self._states.have_adapters(rows)
            for x in self._model.decode_inputs(len(rows), size, has_adapters=has_adapters):
                self._link.receive(x)

    def _receive_chunks(self, num_tokens: int, rows: IntArray) -> None:
        if self._link is not None:
            for x in self._model.chunk_inputs(num_tokens, has_adapters=self._states.have_adapters(rows)):
                self._link.receive(x)

    def warm_up_grammars(self) -> None:
        """Requests with grammars are refused (`engine/grammar_gate.py`)."""

    def _for_rehearsal(self, *given: Any) -> DeviceRunner:
        return type(self)(*given, link=None, captures_graphs=False)


class PassingRunner(LastStageRunner):
    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._undrawn = UndrawnSteps(self._states, self._max_num_seqs)

    def warm_up(self, limits: StepLimits, compiler: KernelCompiler | None) -> None:
        super().warm_up(limits, compiler)
        self._undrawn.forget()

    def _apply(self, plan: StepPlan) -> None:
        for rows in self._undrawn.learn(plan):
            self._rows.touch(rows.tolist())
        super()._apply(plan)

    def _compute(self, plan: StepPlan) -> PendingStep:
        batch = self._states.gather(plan)
        self._undrawn.add(plan.step_id, Draws.of(plan, batch))
        hidden = self._decoded(batch) if self._is_last_of_each(batch) else self._computed(batch)
        if self._link is not None:
            self._link.send(hidden, self._model.outgoing[: len(hidden)])
        launched = None
        if hidden.is_cuda:
            launched = torch.cuda.Event()  # type: ignore[no-untyped-call]
            launched.record()
        return _PassedStep(plan.step_id, launched)

    def _is_last_of_each(self, batch: StepBatch) -> bool:
        """Whether the step computes the last token of every sequence, and nothing else."""
        is_single = len(batch.input_ids) == len(batch.rows)
        return is_single and bool((batch.seq_lens == self._states.num_tokens[batch.rows]).all())

    def _decoded(self, batch: StepBatch) -> torch.Tensor:
        num_rows = len(batch.rows)
        size = padded_size(num_rows, self._max_num_seqs, self._model.row_counts)
        self._receive_decodes(batch.rows)
        self._rows.flush(batch.rows, size)
        return self._decodes.run(size, "logits", has_adapters=self._states.have_adapters(batch.rows))[:num_rows]

    def _computed(self, batch: StepBatch) -> torch.Tensor:
        self._receive_chunks(len(batch.input_ids), batch.rows)
        if self._chunks.takes(batch):
            self._chunks.run(batch, np.zeros(0, np.int32), None)
        else:
            self._model.forward(batch)
        return self._model.hidden_states(len(batch.input_ids))
