"""Log-probabilities of drawn tokens and of prompts, for requests that ask, in the engine's `logprobs_mode`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from octavo.config import LogprobsMode
from octavo.kernels.arrays import IntArray
from octavo.kernels.device import CompiledModel, Logits, StepBatch
from octavo.messages import Candidates, LogprobRow, StepPlan
from octavo.sampling.sampler import NO_LOGPROBS
from octavo.worker.rows import LiveRows

LOGPROB_TILE = 64  # rows of logits held at once at most, so that long prompts need no [T, V] array


class LogprobReporter:
    """Reads the rows and the model's logits, and changes nothing."""

    def __init__(self, model: CompiledModel, rows: LiveRows, max_num_seqs: int, mode: LogprobsMode) -> None:
        self._model = model
        self._rows = rows
        self._tile = min(LOGPROB_TILE, max_num_seqs)
        self._reports_logits = mode in ("raw_logits", "processed_logits")
        self._reports_processed = mode in ("processed_logprobs", "processed_logits")

    def of_drawn(
        self, rows: IntArray, positions: IntArray, logits: Logits, logits_rows: IntArray, token_ids: IntArray
    ) -> dict[int, LogprobRow]:
        """By draw, for those that asked. The rows' earlier tokens must be on the host."""
        ks = self._rows.sampler.num_logprobs(rows)
        wanted = np.flatnonzero(ks != NO_LOGPROBS)
        # processed logits are a float32 copy
        size = self._tile if self._reports_processed else max(1, len(wanted))
        found: dict[int, LogprobRow] = {}
        for start in range(0, len(wanted), size):
            some = wanted[start : start + size]
            own = self._reported_logits(rows[some], positions[some], logits, logits_rows[some], token_ids[some])
            scored_ids, as_logits = self._rows.sampler.scored_ids(rows[some]), self._reports_logits
            reported = logprob_rows(self._model, own, token_ids[some], ks[some], as_logits=as_logits)
            reported = _with_scored_ids(self._model, own, reported, scored_ids, self._tile, as_logits=as_logits)
            found.update(zip(some.tolist(), reported, strict=True))
        return found

    def of_prompt(self, batch: StepBatch, entry: int) -> list[LogprobRow]:
        """For each scheduled prompt token before the last one, the next prompt token's log-probabilities. They are raw
        in every mode: prompt tokens are not drawn."""
        row = batch.rows[entry]
        states = self._rows.states
        begin, end = batch.query_start_loc[entry], batch.query_start_loc[entry + 1]
        last_prompt = states.num_prompt_tokens[row] - 1
        end = min(end, begin + max(0, last_prompt - batch.positions[begin]))
        k = self._rows.num_prompt_logprobs[int(row)]
        found: list[LogprobRow] = []
        for tile in range(begin, end, self._tile):
            indices = np.arange(tile, min(tile + self._tile, end), dtype=np.int32)
            following = states.token_ids[row, batch.positions[indices] + 1]
            logits, ks = self._model.logits(indices), np.full(len(indices), k)
            found += logprob_rows(self._model, logits, following, ks, as_logits=self._reports_logits)
        return found

    def candidates(self, plan: StepPlan, batch: StepBatch) -> dict[int, Candidates]:
        """By entry, the best next tokens of a step's beams. The rows' tokens must be on the host."""
        entries = np.fromiter(plan.candidates, np.int32, len(plan.candidates))
        logits = self._model.logits(batch.query_start_loc[entries + 1] - 1)
        return self.best_next(plan, entries, logits, np.arange(len(entries), dtype=np.int32))

    def best_next(
        self, plan: StepPlan, entries: IntArray, logits: Logits, logits_rows: IntArray
    ) -> dict[int, Candidates]:
        """By entry, the best tokens under its row of logits, once these are edited as its request asks."""
        rows = np.array(plan.rows, np.int32)[entries]
        counts = np.array(list(plan.candidates.values()), np.int32)
        found: dict[int, Candidates] = {}
        is_edited = self._rows.sampler.has_special(rows)
        size = self._tile if is_edited else max(1, len(entries))  # edited logits are a float32 copy
        for start in range(0, len(entries), size):
            some = slice(start, start + size)
            own = _rows_of(logits, logits_rows[some])
            if is_edited:
                states = self._rows.states
                positions = states.num_tokens[rows[some]]
                sampling = self._rows.sampler.prepare(rows[some], logits_rows[some], positions, states.token_ids)
                own = self._model.processed_logits(logits, sampling, np.full(len(positions), -1, np.int32))
            best = logprob_rows(self._model, own, np.zeros(len(own), np.int32), counts[some], as_logits=False)
            pairs = zip(entries[some].tolist(), best, strict=True)
            found.update({entry: (row.token_ids[1:], row.logprobs[1:]) for entry, row in pairs})
        return found

    def _reported_logits(
        self, rows: IntArray, positions: IntArray, logits: Logits, logits_rows: IntArray, token_ids: IntArray
    ) -> Logits:
        """One row a draw: the model's logits, or the processed ones that its token was drawn from."""
        if not self._reports_processed:
            return logits[logits_rows]
        sampling = self._rows.sampler.prepare(rows, logits_rows, positions, self._rows.states.token_ids)
        return self._model.processed_logits(logits, sampling, token_ids)


def _rows_of(logits: Logits, rows: IntArray) -> Logits:
    """These rows of logits; without a copy where they follow each other."""
    first, end = rows[0], rows[-1] + 1
    return logits[first:end] if len(rows) == end - first else logits[rows]


def logprob_rows(
    model: CompiledModel, logits: Logits, tokens: IntArray, counts: NDArray[np.integer], *, as_logits: bool
) -> list[LogprobRow]:
    """One row per position: the token chosen there, then the counts[i] best; -1 is the whole vocabulary.

    logits: [N, V]; tokens, counts: [N]. A position without a token (-1: the draw failed) has an empty row of rank 0.
    as_logits: logits in place of log-probabilities. Positions with the same count share one call, so that a request
    for the whole vocabulary does not slow down the others.
    """
    rows = [LogprobRow([], [], 0)] * len(tokens)
    vocab_size = logits.shape[1]
    for count in np.unique(counts).tolist():
        positions = np.flatnonzero((counts == count) & (tokens >= 0))
        if not len(positions):
            continue
        chosen = logits if len(positions) == len(tokens) else logits[positions]
        k = vocab_size if count == -1 else count
        ids, logprobs, ranks = model.top_logprobs(chosen, tokens[positions], k, as_logits=as_logits)
        for i, *row in zip(positions.tolist(), ids.tolist(), logprobs.tolist(), ranks.tolist(), strict=True):
            rows[i] = LogprobRow(*row)
    return rows


def _with_scored_ids(
    model: CompiledModel,
    logits: Logits,
    rows: list[LogprobRow],
    scored_ids: Sequence[tuple[int, ...]],
    tile: int,
    *,
    as_logits: bool,
) -> list[LogprobRow]:
    """The rows, each with the log-probabilities of its scored ids appended; `tile` ids are scored at once."""
    longer = list(rows)
    for i, ids in enumerate(scored_ids):
        if not ids or not rows[i].token_ids:
            continue
        logprobs: list[float] = []
        ranks: list[int] = []
        for start in range(0, len(ids), tile):
            some = np.array(ids[start : start + tile], np.int32)
            _, found, found_ranks = model.top_logprobs(logits[np.full(len(some), i)], some, 0, as_logits=as_logits)
            logprobs += found[:, 0].tolist()
            ranks += found_ranks.tolist()
        row = rows[i]
        longer[i] = replace(
            row, token_ids=[*row.token_ids, *ids], logprobs=[*row.logprobs, *logprobs], asked_ranks=ranks
        )
    return longer
