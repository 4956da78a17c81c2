"""Runners: apply a step's plan to the rows, compute it, draw its tokens, and keep those that are right.

    plan -> rows updated -> batch gathered -> forward -> logits of the rows that sample -> tokens -> rows

    num_draws      1      3      0      1, of a fork of the first        a chunk inside a prompt draws none
    computes       a      b x y  c ..                                    x, y: guesses at what follows b
    logits         a      b x y
    draws          p      x z q         r                                from a, b, x, y, a
    keeps          p      x z           r                                the guess y was wrong, so q is dropped

HostRunner is for devices that compute in the host's memory; `device_runner.py` is for those with memory of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.config import LogprobsMode
from octavo.kernels.arrays import IntArray
from octavo.kernels.device import CompiledModel, KernelCompiler, StepBatch, StepLimits
from octavo.kernels.ledger import Measured
from octavo.messages import Candidates, LogprobRow, PendingStep, StepPlan, StepResult
from octavo.structured.compiler import GrammarCompiler
from octavo.worker.ended_rows import EndedRows
from octavo.worker.forced_tokens import constrained_runs, with_forced
from octavo.worker.logprobs import LogprobReporter
from octavo.worker.rows import LiveRows
from octavo.worker.step_faults import Explain


@dataclass(frozen=True, slots=True)
class DoneStep:
    """A PendingStep whose result is there."""

    done: StepResult

    def result(self) -> StepResult:
        return self.done


@dataclass(frozen=True, slots=True)
class FailedStep:
    """A PendingStep that failed as it began."""

    fault: Exception

    def result(self) -> StepResult:
        raise self.fault


class Runner(Protocol):
    """Runs the steps of one worker."""

    def submit(self, plan: StepPlan) -> PendingStep:
        """Begin a step. A fault of the step is raised by `result`."""

    def warm_up(self, limits: StepLimits, compiler: KernelCompiler | None) -> None:
        """Run a step of every kind that would take longer the first time. compiler: for the kernels that they need."""

    def constrain(self, compiler: GrammarCompiler) -> None:
        """Compile the grammars of rows with it."""

    def held(self) -> Measured:
        """Bytes of the rows, on the device where they are mirrored there."""

    def close(self) -> None: ...


class HostRunner:
    """Owner of the rows and the bound model. A step is done when `submit` returns."""

    def __init__(
        self,
        model: CompiledModel,
        rows: LiveRows,
        max_num_seqs: int,
        logprobs_mode: LogprobsMode,
        explain: Explain | None = None,
        *,
        overlaps: bool = False,
    ) -> None:
        """explain: makes the error of a step that found no memory. overlaps: a step may have rows that the last one has
        ended."""
        self._explain = explain
        self._model = model
        self._rows = rows
        self._ended = EndedRows(rows.states) if overlaps else None
        self._logprobs = LogprobReporter(model, rows, max_num_seqs, logprobs_mode)

    def submit(self, plan: StepPlan) -> PendingStep:
        try:
            self._rows.apply(plan, self._model)
            if self._ended is not None:
                self._ended.enter(plan)
            if plan.adapters:
                self._rows.place_adapters(plan, self._model)
            return DoneStep(self._compute(plan) if plan.rows else StepResult(plan.step_id, []))
        except MemoryError as fault:
            return FailedStep(fault if self._explain is None else self._explain(plan, fault))
        except Exception as fault:
            return FailedStep(fault)

    def warm_up(self, limits: StepLimits, compiler: KernelCompiler | None) -> None:
        """Do nothing: kernels were built before they were loaded, and the first step takes no longer than others."""

    def constrain(self, compiler: GrammarCompiler) -> None:
        self._rows.grammars.compiler = compiler

    def held(self) -> Measured:
        return {"rows": self._rows.states.num_bytes}

    def close(self) -> None:
        """Free the model with its weights and KV blocks."""
        del self._model, self._logprobs

    def _compute(self, plan: StepPlan) -> StepResult:
        return self._computed(plan) if self._ended is None else self._ended.run(plan, self._computed)

    def _computed(self, plan: StepPlan) -> StepResult:
        batch = self._rows.states.gather(plan)
        self._model.forward(batch)
        return self._drawn(plan, batch)

    def _drawn(self, plan: StepPlan, batch: StepBatch) -> StepResult:
        prompt_logprobs = {entry: self._logprobs.of_prompt(batch, entry) for entry in plan.prompt_logprobs}
        candidates = self._logprobs.candidates(plan, batch) if plan.candidates else {}
        draws = Draws.of(plan, batch)
        return keep_draws(plan, draws, self._model, self._rows, self._logprobs, prompt_logprobs, candidates)


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """N draws of a step, in the order of its runs."""

    rows: IntArray
    positions: IntArray  # that the new tokens will have
    logits_rows: IntArray  # which of the M rows of logits each draw reads
    wanted: IntArray  # [M] the step's tokens whose logits are needed
    counts: IntArray  # the number of draws in each run
    is_plain: bool = False  # one draw a run, each from its own row of logits

    @classmethod
    def of(cls, plan: StepPlan, batch: StepBatch) -> Draws:
        counts, rows, seq_lens = np.array(plan.num_draws, np.int32), batch.rows, batch.seq_lens
        if len(counts) == len(rows) == plan.num_draws.count(1):
            logits_rows = np.arange(len(rows), dtype=np.int32)
            return cls(rows, seq_lens, logits_rows, batch.query_start_loc[1:] - 1, counts, is_plain=True)
        num_logits = np.array(plan.num_logits, np.int32)
        logits_ends = np.cumsum(num_logits, dtype=np.int32)
        if plan.fork_rows:  # they draw from their parents' rows of logits
            parents = [plan.rows.index(fork.parent_row) for fork in plan.fork_rows]
            rows = np.append(rows, np.array([fork.row for fork in plan.fork_rows], np.int32))
            seq_lens, logits_ends = np.append(seq_lens, seq_lens[parents]), np.append(logits_ends, logits_ends[parents])
        return cls(
            rows=np.repeat(rows, counts),
            positions=_last_before(seq_lens + 1, counts),
            logits_rows=_last_before(logits_ends, counts),
            wanted=_last_before(batch.query_start_loc[1:], num_logits),
            counts=counts,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def tiles(self, size: int) -> Iterator[tuple[int, Draws]]:
        """`size` draws at a time, each tile with the logits it needs: there is no room for more at once."""
        if 0 < len(self) <= size:
            yield 0, self
            return
        for start in range(0, len(self), size):
            some = slice(start, start + size)
            wanted, logits_rows = np.unique(self.wanted[self.logits_rows[some]], return_inverse=True)
            counts = np.ones(len(logits_rows), np.int32)
            yield start, Draws(self.rows[some], self.positions[some], logits_rows.astype(np.int32), wanted, counts)

    def kept(self, plan: StepPlan, token_ids: IntArray, num_tokens: IntArray) -> NDArray[np.bool_]:
        """Which drawn tokens their rows keep: of a run those up to and including the first that was not guessed, and
        none if the row has other tokens than the plan was made for. num_tokens: of every row, so far."""
        kept: NDArray[np.bool_] = self.positions == num_tokens[self.rows]
        if plan.spec_token_ids:
            ends = np.cumsum(self.counts)
            for entry, guesses in plan.spec_token_ids.items():
                first, end = ends[entry] - self.counts[entry], ends[entry]
                right = np.logical_and.accumulate(token_ids[first : end - 1] == guesses)
                kept[first + 1 : end] = kept[first] & right
        return kept

    def places_of(self, result: StepResult) -> tuple[IntArray, IntArray]:
        """The rows and positions of a result's tokens. A run's tokens follow each other, forced ones behind drawn."""
        if not result.offsets:
            return self.rows, self.positions
        starts, lens = np.array(result.offsets[:-1], np.int32), np.diff(result.offsets)
        firsts = np.repeat(np.cumsum(self.counts) - self.counts, lens)  # the draw that begins each token's run
        place_in_run = np.arange(result.offsets[-1], dtype=np.int32) - np.repeat(starts, lens)
        return self.rows[firsts], self.positions[firsts] + place_in_run

    def result(
        self,
        step_id: int,
        token_ids: IntArray,
        kept: NDArray[np.bool_],
        logprobs: dict[int, LogprobRow],
        prompt_logprobs: dict[int, list[LogprobRow]],
        candidates: dict[int, Candidates] | None = None,
    ) -> StepResult:
        """The tokens that are kept, as runs. logprobs: by draw."""
        offsets: list[int] = []
        if not (self.is_plain and kept.all()):
            ends = np.append(0, np.cumsum(self.counts))
            offsets = np.append(0, np.cumsum(kept))[ends].tolist()
        of_runs: dict[int, list[LogprobRow]] = {}
        if logprobs:
            runs = np.repeat(np.arange(len(self.counts)), self.counts).tolist()
            for draw, row in logprobs.items():
                if kept[draw]:
                    of_runs.setdefault(runs[draw], []).append(row)
        return StepResult(step_id, token_ids[kept].tolist(), offsets, of_runs, prompt_logprobs, candidates or {})


def keep_draws(
    plan: StepPlan,
    draws: Draws,
    model: CompiledModel,
    live: LiveRows,
    reporter: LogprobReporter,
    prompt_logprobs: dict[int, list[LogprobRow]],
    candidates: dict[int, Candidates],
) -> StepResult:
    """Draw after a forward pass, and append to the rows what they keep."""
    states, sampler = live.states, live.sampler
    tiles, logprobs = [np.zeros(0, np.int32)], {}
    for start, tile in draws.tiles(len(states.num_tokens)):
        logits = model.logits(tile.wanted)
        if sampler.processed.rows:
            read = partial(model.host_logits, logits)
            sampler.processed.run(tile.rows, tile.logits_rows, tile.positions, states.token_ids, read)
        sampling = sampler.prepare(tile.rows, tile.logits_rows, tile.positions, states.token_ids)
        drawn = model.sample(logits, sampling)
        tiles.append(drawn)
        if sampler.reports_logprobs(tile.rows):
            found = reporter.of_drawn(tile.rows, tile.positions, logits, tile.logits_rows, drawn)
            logprobs.update({start + draw: row for draw, row in found.items()})
    token_ids = np.concatenate(tiles)
    kept = draws.kept(plan, token_ids, states.num_tokens)
    states.append(draws.rows[kept], draws.positions[kept], token_ids[kept])
    result = draws.result(plan.step_id, token_ids, kept, logprobs, prompt_logprobs, candidates)
    if sampler.processed.faults:
        result = with_faults(result, plan, sampler.processed.take_faults())
    if not live.grammars.rows:
        return result
    runs = constrained_runs(result, [*plan.rows, *(fork.row for fork in plan.fork_rows)], live)
    return with_forced(result, live, runs, live.grammars.memory)


def with_faults(result: StepResult, plan: StepPlan, faults: dict[int, str]) -> StepResult:
    """faults: by row."""
    rows = [*plan.rows, *(fork.row for fork in plan.fork_rows)]
    return replace(result, faults={run: faults[row] for run, row in enumerate(rows) if row in faults})


def _last_before(ends: IntArray, counts: IntArray) -> IntArray:
    """For each end, the counts[i] numbers before it: 5 and 9 with counts 1 and 3 -> 4, 6, 7, 8."""
    if counts.max(initial=0) < 2:
        return ends[counts > 0] - 1
    shifts = ends - np.cumsum(counts, dtype=np.int32)
    return np.repeat(shifts, counts) + np.arange(counts.sum(), dtype=np.int32)
