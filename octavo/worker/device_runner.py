"""DeviceRunner: launches steps on a device with memory of its own, and fetches their tokens later.

    submit 1 | submit 2 .............. | submit 3 ...             host
             | result 1 (waits)        | result 2 (waits)
    [ step 1 .......... ][ step 2 .......... ][ step 3 ...        device

Rows on the device are always current: a step appends the tokens it draws there, and the next step reads them there.
The host's rows follow when a step's tokens are fetched, in order. Only two things wait for tokens on the host:
log-probabilities, and penalties, grammars, users' functions and other edits of logits, which read a sequence's history.
A step of decodes with edits leaves its draw for later (`launched_steps.py`), so that the host waits while the device
computes logits.

Most steps are decodes only. They start from the device's rows and are one launch. Steps with chunks, forks or prompt
log-probabilities use a batch gathered on the host; tokens that the host does not have yet are filled in on the device.
Up to their logits they are one launch too, unless they are large.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from octavo.config import LogprobsMode
from octavo.distributed.collectives import Collectives
from octavo.kernels.arrays import IntArray
from octavo.kernels.cuda.model import TritonModel
from octavo.kernels.cuda.sizes import KEPT
from octavo.kernels.cuda.step import GraphMemory
from octavo.kernels.device import KernelCompiler, StepBatch, StepLimits
from octavo.kernels.ledger import Measured
from octavo.kernels.triton.linear.row_counts import padded_size
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.structured.compiler import GrammarCompiler
from octavo.worker.chunk_graphs import ChunkSteps
from octavo.worker.cuda_graphs import DecodeSteps, Variant
from octavo.worker.device_grammars import DeviceGrammars
from octavo.worker.device_rows import DeviceRows
from octavo.worker.launched_steps import LaunchedStep, LaunchedSteps, fault_of
from octavo.worker.logprobs import LogprobReporter
from octavo.worker.rows import LiveRows
from octavo.worker.runner import DoneStep, Draws, FailedStep, keep_draws
from octavo.worker.step_faults import Explain
from octavo.worker.warm_up import warm_up_plans


class DeviceRunner:
    """Owner of the rows on both sides and the bound model."""

    def __init__(
        self,
        model: TritonModel,
        rows: LiveRows,
        max_num_seqs: int,
        logprobs_mode: LogprobsMode,
        ranks: Collectives | None = None,
        *,
        captures_graphs: bool = True,
        explain: Explain | None = None,
    ) -> None:
        """explain: makes the error of a step that found no memory."""
        self._model, self._explain = model, explain
        self._live, self._states, self._sampler = rows, rows.states, rows.sampler
        self._logprobs_mode, self._ranks = logprobs_mode, ranks
        self._logprobs = LogprobReporter(model, rows, max_num_seqs, logprobs_mode)
        self._rows = DeviceRows(rows.states, rows.sampler, model.staging, model.device, model.row_adapters)
        memory = GraphMemory(model.device) if captures_graphs and model.device.type == "cuda" else None
        self._decodes = DecodeSteps(model, self._rows, max_num_seqs, memory)
        self._chunks = ChunkSteps(model, self._rows, max_num_seqs, memory)
        self._launched = LaunchedSteps(rows.states, max_num_seqs, model.device)
        self._grammars = DeviceGrammars(model, rows, self._rows, self._decodes, self._launched, max_num_seqs)
        self._max_num_seqs = max_num_seqs
        self._last_rows: list[int] = []
        self._last_array: IntArray = np.zeros(0, np.int32)
        self._last_variant: Variant = "plain"
        self._last_has_adapters = False

    def submit(self, plan: StepPlan) -> PendingStep:
        """Launch a step. Its result raises OutOfMemoryError, EngineDeadError if the GPU is lost, or any other fault."""
        try:
            return self._begin(plan)
        except torch.cuda.OutOfMemoryError as error:
            return FailedStep(error if self._explain is None else self._explain(plan, error))
        except Exception as error:
            return FailedStep(fault_of(error))

    def warm_up(self, limits: StepLimits, compiler: KernelCompiler | None) -> None:
        """Run a step of every kind before the first request. With a compiler, a rehearsal comes first: another runner's
        steps have their kernels compiled, and draw nothing."""
        has_adapters = self._states.adapters is not None
        if compiler is not None:
            rehearsing = self._for_rehearsal(self._model, self._live, self._max_num_seqs, self._logprobs_mode)
            with nullcontext() if self._ranks is None else self._ranks.resting(), compiler.rehearsal():
                for plan in warm_up_plans(limits, times=1, has_adapters=has_adapters):
                    rehearsing.submit(plan).result()
                rehearsing.warm_up_grammars()
        for plan in warm_up_plans(limits, has_adapters=has_adapters):
            self.submit(plan).result()
        self.warm_up_grammars()
        if compiler is not None:
            compiler.remember()

    def warm_up_grammars(self) -> None:
        self._grammars.warm_up()

    def _for_rehearsal(self, *given: Any) -> DeviceRunner:
        return DeviceRunner(*given, captures_graphs=False)

    def constrain(self, compiler: GrammarCompiler) -> None:
        self._live.grammars.compiler = compiler

    def held(self) -> Measured:
        return {"rows": self._rows.num_bytes}

    def close(self) -> None:
        """Free the device's memory now. The parts of a model refer to each other, so it would stay until Python next
        collected cycles, and torch would cache it even then."""
        self._launched.close()
        del self._model, self._logprobs, self._rows, self._decodes, self._chunks, self._launched, self._grammars
        gc.collect()
        torch.cuda.empty_cache()

    def _begin(self, plan: StepPlan) -> PendingStep:
        if self._model.device.index:  # a thread starts on the first GPU, and any thread may run the engine's steps
            torch.cuda.set_device(self._model.device)
        self._launched.finish_draw()
        self._apply(plan)
        return self._compute(plan) if plan.rows else DoneStep(StepResult(plan.step_id, []))

    def _compute(self, plan: StepPlan) -> PendingStep:
        if plan.candidates and len(plan.rows) == plan.num_tokens == len(plan.candidates) + sum(plan.num_draws):
            return self._begin_any(plan) if plan.fork_rows or plan.prompt_logprobs else self._begin_beams(plan)
        return self._begin_decodes(plan) if _is_decode(plan) else self._begin_any(plan)

    def _apply(self, plan: StepPlan) -> None:
        self._live.apply(plan, self._model)
        for write in plan.block_writes:
            self._rows.write_blocks(write)
        for fork in plan.fork_rows:
            self._rows.fork(fork)
        if plan.beam_rows:
            self._rows.continue_beams(plan.beam_rows, plan.beam_parents)
            self._launched.enter(plan.beam_rows)
        entered = [new.row for new in plan.new_rows] + [fork.row for fork in plan.fork_rows]
        if entered:
            self._rows.touch(entered)
            self._launched.enter(entered)
            self._last_rows = []  # the same rows may have other sampling parameters now
        if plan.adapters:
            self._live.place_adapters(plan, self._model)

    # Steps of decodes alone

    def _begin_decodes(self, plan: StepPlan) -> PendingStep:
        if plan.rows != self._last_rows:
            self._last_rows, self._last_array = plan.rows, np.array(plan.rows, np.int32)
            self._last_variant = self._variant(self._last_array)
            self._last_has_adapters = self._states.have_adapters(self._last_array)
        rows, variant = self._last_array, self._last_variant
        positions = self._states.num_tokens[rows]
        size = padded_size(len(rows), self._max_num_seqs, self._model.row_counts)
        self._rows.flush(rows, size)
        logits = self._decodes.run(size, variant, has_adapters=self._last_has_adapters)
        entries = np.arange(len(rows), dtype=np.int32)
        if variant != "logits":
            return self._launch(plan, rows, positions, None, logits, entries)
        if self._sampler.reports_logprobs(rows):
            return self._launch(plan, rows, positions, self._draw(logits, rows, entries, positions), logits, entries)
        step = self._add(plan, rows, positions)
        step.draw_late = partial(self._draw, logits, rows, entries, positions, step)
        return step

    def _begin_beams(self, plan: StepPlan) -> PendingStep:
        """A step of decodes of which some are beams: these want the best next tokens, the others draw."""
        rows, counts = np.array(plan.rows, np.int32), np.array(plan.num_draws, np.int32)
        size = padded_size(len(rows), self._max_num_seqs, self._model.row_counts)
        self._rows.flush(rows, size)
        logits = self._decodes.run(size, "logits", has_adapters=self._states.have_adapters(rows))
        entries = np.fromiter(plan.candidates, np.int32, len(plan.candidates))
        drawing = np.flatnonzero(counts).astype(np.int32)
        positions = self._states.num_tokens[rows[drawing]]
        tokens = self._draw(logits, rows[drawing], drawing, positions) if len(drawing) else None
        candidates = self._logprobs.best_next(plan, entries, logits, entries)
        if tokens is None:
            return DoneStep(StepResult(plan.step_id, [], [0] * (len(rows) + 1), candidates=candidates))
        launched = self._launch(plan, rows[drawing], positions, tokens, logits, drawing)
        launched.draws = Draws(rows[drawing], positions, drawing, entries, counts)
        launched.candidates = candidates
        return launched

    def _variant(self, rows: IntArray) -> Variant:
        if self._sampler.has_special(rows):
            return "logits"
        is_parted = self._model.parted_draws is not None and not self._sampler.reports_logprobs(rows)
        if not self._sampler.has_filters(rows):
            return "parted" if is_parted else "plain"
        return "parted_top_k" if is_parted and self._sampler.keeps_few(rows, KEPT) else "filtered"

    # Steps of every other kind

    def _begin_any(self, plan: StepPlan) -> PendingStep:
        if plan.spec_token_ids:
            self._launched.fetch_all()  # which guesses are kept must be known before the next step builds on them
        batch = self._states.gather(plan)
        draws, logits = Draws.of(plan, batch), None
        if self._chunks.takes(batch):
            # logits of prompt tokens and beams use the same memory, and are computed first
            is_first = not (plan.prompt_logprobs or plan.spec_token_ids or plan.candidates)
            wanted = draws.wanted if is_first else draws.wanted[:0]
            logits = self._chunks.run(batch, wanted, self._completion(batch))
        else:
            self._model.forward(batch, self._completion(batch))
        prompt_logprobs = {entry: self._logprobs.of_prompt(batch, entry) for entry in plan.prompt_logprobs}
        candidates = self._logprobs.candidates(plan, batch) if plan.candidates else {}
        if plan.spec_token_ids or not len(draws):
            self._rows.touch(draws.rows.tolist())  # the host decides which of their tokens are kept
            reported = prompt_logprobs, candidates
            return DoneStep(keep_draws(plan, draws, self._model, self._live, self._logprobs, *reported))
        if logits is None:
            logits = self._model.logits(draws.wanted)
        self._rows.flush_records(draws.rows)
        tokens = self._draw(logits, draws.rows, draws.logits_rows, draws.positions)
        launched = self._launch(plan, draws.rows, draws.positions, tokens, logits, draws.logits_rows)
        launched.draws, launched.prompt_logprobs, launched.candidates = draws, prompt_logprobs, candidates
        return launched

    def _completion(self, batch: StepBatch) -> Callable[[torch.Tensor], None] | None:
        """A function that fills tokens that only the device has into a step's input_ids; None if there are none."""
        unknown = self._launched.unknown(batch.rows)
        if not len(unknown):
            return None
        places = (batch.query_start_loc[unknown + 1] - 1).astype(np.int64)
        rows = batch.rows[unknown]
        return lambda input_ids: self._rows.copy_tokens(rows, input_ids, places)

    # Steps of both kinds

    def _draw(
        self,
        logits: torch.Tensor,
        rows: IntArray,
        logits_rows: IntArray,
        positions: IntArray,
        step: LaunchedStep | None = None,
    ) -> torch.Tensor:
        """Draw with the host's sampling columns, and append the tokens to the device's rows. step: the one that is
        launched already, and draws late."""
        if self._sampler.has_special(rows):
            self._launched.fetch_all(but=step)
            if self._grammars.takes(rows):
                return self._grammars.draw(logits, rows, logits_rows, positions, is_step=step is not None)
        if (processed := self._sampler.processed).rows:
            read = partial(self._model.host_logits, logits)
            processed.run(rows, logits_rows, positions, self._states.token_ids, read)
            if step is not None:
                step.faults = processed.take_faults()
        sampling = self._sampler.prepare(rows, logits_rows, positions, self._states.token_ids)
        tokens = self._model.launch_sample(logits, sampling)
        self._rows.advance(rows, tokens)
        return tokens

    def _launch(
        self,
        plan: StepPlan,
        rows: IntArray,
        positions: IntArray,
        tokens: torch.Tensor | None,
        logits: torch.Tensor,
        logits_rows: IntArray,
    ) -> LaunchedStep:
        """Start copying the tokens to the host; None: those that the rows keep. Log-probabilities wait here: the next
        step overwrites the logits."""
        step = self._add(plan, rows, positions)
        if self._sampler.processed.faults:
            step.faults = self._sampler.processed.take_faults()
        if tokens is None:
            self._launched.send_kept(step, self._rows.kept_tokens)
        else:
            self._launched.send(step, tokens)
        if self._sampler.reports_logprobs(rows):
            step.logprobs = self._logprobs.of_drawn(rows, positions, logits, logits_rows, self._launched.fetch(step))
        return step

    def _add(self, plan: StepPlan, rows: IntArray, positions: IntArray) -> LaunchedStep:
        step = self._launched.add(plan, rows, positions)
        if self._live.grammars.rows:
            step.complete = self._grammars.force
        return step


def _is_decode(plan: StepPlan) -> bool:
    """Every sequence of the step computes one token and draws the next."""
    return (
        len(plan.rows) == plan.num_tokens and plan.num_draws == plan.num_scheduled_tokens and not plan.prompt_logprobs
    )
