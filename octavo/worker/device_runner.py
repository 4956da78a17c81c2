"""The runner of a device with memory of its own: a step is launched, and its tokens are fetched later.

    begin 1 | begin 2 ............... | begin 3 ...              host
            | result 1 (waits)        | result 2 (waits)
    [ step 1 .......... ][ step 2 .......... ][ step 3 ...       device

Rows on the device are always true: whatever draws a token puts it there, and the next step takes it from there. The
host's copy follows when a step's result is fetched, in order. Only what must see tokens on the host waits for it:
penalties and the like, which look at a sequence's history, and log-probabilities.

Steps of decodes alone, which are nearly all, start from the device's rows and are one launch. Steps with chunks, forks
or prompt log-probabilities go through a batch gathered on the host; tokens it does not know yet are filled in there.
All that they do up to their logits is one launch, too, unless it is large.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from octavo.config import LogprobsMode
from octavo.errors import EngineDeadError, OutOfMemoryError
from octavo.kernels.cuda.model import TritonModel
from octavo.kernels.cuda.step import GraphMemory
from octavo.kernels.device import KernelCompiler, StepBatch, StepLimits
from octavo.kernels.ops import IntArray
from octavo.kernels.triton.linear.row_counts import padded_size
from octavo.messages import DoneStep, LogprobRow, PendingStep, StepPlan, StepResult
from octavo.worker.cuda_graphs import ChunkSteps, DecodeSteps, Variant
from octavo.worker.device_rows import DeviceRows
from octavo.worker.drawn_tokens import DrawnTokens, Fetch
from octavo.worker.draws import Draws, keep_draws
from octavo.worker.live_rows import LiveRows
from octavo.worker.logprob_reporter import LogprobReporter
from octavo.worker.warm_up import warm_up_plans


@dataclass(slots=True, eq=False)
class _Launched:
    """A step whose tokens are not on the host yet, or were fetched before their turn. draws: those of a step of any
    kind; None: one for each row, of a step of decodes. logprobs: by draw."""

    runner: DeviceRunner
    plan: StepPlan
    rows: IntArray
    positions: IntArray
    tenants: IntArray  # who had the rows when the step was launched
    fetch: Fetch
    draws: Draws | None = None
    logprobs: dict[int, LogprobRow] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[LogprobRow]] = field(default_factory=dict)
    token_ids: IntArray | None = None

    def result(self) -> StepResult:
        tokens = self.runner.settle(self)
        if self.draws is None:
            rows = {draw: [row] for draw, row in self.logprobs.items()}
            return StepResult(self.plan.step_id, tokens.tolist(), logprobs=rows)
        all_kept = np.ones(len(tokens), np.bool_)
        return self.draws.result(self.plan.step_id, tokens, all_kept, self.logprobs, self.prompt_logprobs)


class DeviceRunner:
    """Owner of the rows on both sides and the bound model."""

    def __init__(
        self,
        model: TritonModel,
        rows: LiveRows,
        max_num_seqs: int,
        logprobs_mode: LogprobsMode,
        *,
        captures_graphs: bool = True,
    ) -> None:
        self._model = model
        self._live, self._states, self._sampler = rows, rows.states, rows.sampler
        self._logprobs_mode = logprobs_mode
        self._logprobs = LogprobReporter(model, rows, max_num_seqs, logprobs_mode)
        self._rows = DeviceRows(rows.states, rows.sampler, model.staging, model.device)
        memory = GraphMemory(model.device) if captures_graphs and model.device.type == "cuda" else None
        self._decodes = DecodeSteps(model, self._rows, max_num_seqs, memory)
        self._chunks = ChunkSteps(model, self._rows, max_num_seqs, memory)
        self._drawn = DrawnTokens(max_num_seqs, model.device)
        self._max_num_seqs = max_num_seqs
        self._launched: deque[_Launched] = deque()
        self._num_unknown: IntArray = np.zeros(max_num_seqs, np.int32)  # tokens of a row still to be fetched
        self._tenant: IntArray = np.zeros(max_num_seqs, np.int32)  # counts who has been in a row
        self._last_rows: list[int] = []
        self._last_array: IntArray = np.zeros(0, np.int32)
        self._last_variant: Variant = "plain"

    def begin(self, plan: StepPlan) -> PendingStep:
        """Launch a step and come back. Raises OutOfMemoryError, and EngineDeadError where the GPU is lost."""
        if self._model.device.index:  # a thread begins with the first GPU, and any thread may turn the engine
            torch.cuda.set_device(self._model.device)
        try:
            return self._begin(plan)
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"a step of {plan.num_tokens} tokens and {len(plan.rows)} sequences found no memory on the GPU for "
                "what it needs beside weights and KV blocks; lower gpu_memory_utilization, or logprobs where requests "
                f"ask for the whole vocabulary ({error})"
            ) from error
        except RuntimeError as error:
            _raise_if_lost(error)
            raise

    def warm_up(self, limits: StepLimits, compiler: KernelCompiler | None) -> None:
        """Run a step of every kind before there are any that somebody waits for. With a compiler, once before: by a
        runner whose steps only have their kernels compiled, and draw nothing."""
        if compiler is not None:
            rehearsing = DeviceRunner(
                self._model, self._live, self._max_num_seqs, self._logprobs_mode, captures_graphs=False
            )
            with compiler.rehearsal():
                for plan in warm_up_plans(limits, times=1):
                    rehearsing.begin(plan).result()
        for plan in warm_up_plans(limits):
            self.begin(plan).result()
        if compiler is not None:
            compiler.remember()

    def close(self) -> None:
        """Give the device's memory back now: the parts of a model know each other, so it would stay until Python next
        looked for such circles, and torch would keep it even then."""
        self._launched.clear()
        del self._model, self._logprobs, self._rows, self._decodes, self._chunks, self._drawn
        gc.collect()
        torch.cuda.empty_cache()

    def _begin(self, plan: StepPlan) -> PendingStep:
        self._apply(plan)
        if not plan.rows:
            return DoneStep(StepResult(plan.step_id, []))
        return self._begin_decodes(plan) if _is_decode(plan) else self._begin_any(plan)

    def settle(self, step: _Launched) -> IntArray:
        """A step's tokens, brought to the host with those of all steps before it."""
        try:
            while step.token_ids is None:
                self._settle_oldest()
        except RuntimeError as error:
            _raise_if_lost(error)
            raise
        return step.token_ids

    def _settle_oldest(self) -> None:
        step = self._launched.popleft()
        step.token_ids = self._drawn.wait(step.fetch)
        same = self._tenant[step.rows] == step.tenants
        self._states.fill(step.rows[same], step.positions[same], step.token_ids[same])
        self._num_unknown[step.rows[same]] -= 1

    def _settle_all(self) -> None:
        while self._launched:
            self._settle_oldest()

    def _apply(self, plan: StepPlan) -> None:
        self._live.apply(plan, self._model)
        for write in plan.block_writes:
            self._rows.write_blocks(write)
        for fork in plan.fork_rows:
            self._rows.fork(fork)
        entered = [new.row for new in plan.new_rows] + [fork.row for fork in plan.fork_rows]
        if entered:
            self._rows.touch(entered)
            self._tenant[entered] += 1
            self._num_unknown[entered] = 0
            self._last_rows = []  # the same rows may want something else now

    # Steps of decodes alone

    def _begin_decodes(self, plan: StepPlan) -> PendingStep:
        if plan.rows != self._last_rows:
            self._last_rows, self._last_array = plan.rows, np.array(plan.rows, np.int32)
            self._last_variant = self._variant(self._last_array)
        rows, variant = self._last_array, self._last_variant
        positions = self._states.num_tokens[rows]
        size = padded_size(len(rows), self._max_num_seqs, self._model.row_counts)
        self._rows.flush(rows, size)
        logits = self._decodes.run(size, variant)
        entries = np.arange(len(rows), dtype=np.int32)
        if variant == "logits":
            tokens = self._draw(logits, rows, entries, positions)
        else:
            tokens = self._decodes.tokens(len(rows))
        return self._launch(plan, rows, positions, tokens, logits, entries)

    def _variant(self, rows: IntArray) -> Variant:
        if self._sampler.has_special(rows):
            return "logits"
        return "filtered" if self._sampler.has_filters(rows) else "plain"

    # Steps of any kind

    def _begin_any(self, plan: StepPlan) -> PendingStep:
        if plan.spec_token_ids:
            self._settle_all()  # what is kept of the guesses must be known before anything builds on it
        batch = self._states.gather(plan)
        draws, logits = Draws.of(plan, batch), None
        if self._chunks.takes(batch):
            # prompt tokens' logits take the same memory, and come first
            wanted = draws.wanted[:0] if plan.prompt_logprobs or plan.spec_token_ids else draws.wanted
            logits = self._chunks.run(batch, wanted, self._completion(batch))
        else:
            self._model.forward(batch, self._completion(batch))
        prompt_logprobs = {entry: self._logprobs.of_prompt(batch, entry) for entry in plan.prompt_logprobs}
        if plan.spec_token_ids or not len(draws):
            self._rows.touch(draws.rows.tolist())  # they go on from what is kept of their tokens on the host
            return DoneStep(keep_draws(plan, draws, self._model, self._live, self._logprobs, prompt_logprobs))
        if logits is None:
            logits = self._model.logits(draws.wanted)
        self._rows.flush_records(draws.rows)
        tokens = self._draw(logits, draws.rows, draws.logits_rows, draws.positions)
        launched = self._launch(plan, draws.rows, draws.positions, tokens, logits, draws.logits_rows)
        launched.draws, launched.prompt_logprobs = draws, prompt_logprobs
        return launched

    def _completion(self, batch: StepBatch) -> Callable[[torch.Tensor], None] | None:
        """What puts the tokens that only the device knows into a step's input_ids."""
        unknown = np.flatnonzero(self._num_unknown[batch.rows])
        if not len(unknown):
            return None
        places = (batch.query_start_loc[unknown + 1] - 1).astype(np.int64)
        rows = batch.rows[unknown]
        return lambda input_ids: self._rows.copy_tokens(rows, input_ids, places)

    # Both

    def _draw(self, logits: torch.Tensor, rows: IntArray, logits_rows: IntArray, positions: IntArray) -> torch.Tensor:
        """Draw by the host's columns, whatever they hold, and put the tokens into the device's rows."""
        if self._sampler.has_special(rows):
            self._settle_all()
        sampling = self._sampler.prepare(rows, logits_rows, positions, self._states.token_ids)
        tokens = self._model.launch_sample(logits, sampling)
        self._rows.advance(rows, tokens)
        return tokens

    def _launch(
        self,
        plan: StepPlan,
        rows: IntArray,
        positions: IntArray,
        tokens: torch.Tensor,
        logits: torch.Tensor,
        logits_rows: IntArray,
    ) -> _Launched:
        """Send the tokens on their way. Who wants log-probabilities waits here: the next step takes the logits."""
        self._states.reserve(rows, positions)
        self._num_unknown[rows] += 1
        step = _Launched(self, plan, rows, positions, self._tenant[rows], self._drawn.send(tokens))
        self._launched.append(step)
        if self._logprobs.is_asked(rows):
            step.logprobs = self._logprobs.of_drawn(rows, positions, logits, logits_rows, self.settle(step))
        return step


def _raise_if_lost(error: RuntimeError) -> None:
    """After an error of CUDA itself, every later call of this process fails with it."""
    if "CUDA error" in str(error):
        raise EngineDeadError(f"the GPU cannot be used by this process any more: {error}") from error


def _is_decode(plan: StepPlan) -> bool:
    """Every sequence of the step computes one token and draws the next."""
    return (
        len(plan.rows) == plan.num_tokens and plan.num_draws == plan.num_scheduled_tokens and not plan.prompt_logprobs
    )
