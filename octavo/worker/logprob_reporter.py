"""Log-probabilities for those who ask: of drawn tokens and of prompts, in the mode that the engine runs in."""

from __future__ import annotations

import numpy as np

from octavo.config import LogprobsMode
from octavo.kernels.device import CompiledModel, Logits, StepBatch
from octavo.kernels.ops import IntArray
from octavo.messages import LogprobRow
from octavo.sampling.sampler import NO_LOGPROBS
from octavo.worker.live_rows import LiveRows
from octavo.worker.logprob_rows import logprob_rows, with_scored_ids

LOGPROB_TILE = 64  # rows of logits held at once at most, so that long prompts need no [T, V] array


class LogprobReporter:
    """Reads the rows and the model's logits, and changes nothing."""

    def __init__(self, model: CompiledModel, rows: LiveRows, max_num_seqs: int, mode: LogprobsMode) -> None:
        self._model = model
        self._rows = rows
        self._tile = min(LOGPROB_TILE, max_num_seqs)
        self._reports_logits = mode in ("raw_logits", "processed_logits")
        self._reports_processed = mode in ("processed_logprobs", "processed_logits")

    def is_asked(self, rows: IntArray) -> bool:
        return bool((self._rows.sampler.num_logprobs(rows) != NO_LOGPROBS).any())

    def of_drawn(
        self, rows: IntArray, positions: IntArray, logits: Logits, logits_rows: IntArray, token_ids: IntArray
    ) -> dict[int, LogprobRow]:
        """By draw, for those that asked. The tokens before those drawn are on the host."""
        ks = self._rows.sampler.num_logprobs(rows)
        wanted = np.flatnonzero(ks != NO_LOGPROBS)
        # processed logits are float32 and take memory of their own
        size = self._tile if self._reports_processed else max(1, len(wanted))
        found: dict[int, LogprobRow] = {}
        for start in range(0, len(wanted), size):
            some = wanted[start : start + size]
            own = self._reported_logits(rows[some], positions[some], logits, logits_rows[some], token_ids[some])
            scored_ids, as_logits = self._rows.sampler.scored_ids(rows[some]), self._reports_logits
            reported = logprob_rows(self._model, own, token_ids[some], ks[some], as_logits=as_logits)
            reported = with_scored_ids(self._model, own, reported, scored_ids, self._tile, as_logits=as_logits)
            found.update(zip(some.tolist(), reported, strict=True))
        return found

    def of_prompt(self, batch: StepBatch, entry: int) -> list[LogprobRow]:
        """For each scheduled prompt token that another prompt token follows: that token's log-probabilities.
        They are raw in every mode: nothing of a prompt is drawn."""
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

    def _reported_logits(
        self, rows: IntArray, positions: IntArray, logits: Logits, logits_rows: IntArray, token_ids: IntArray
    ) -> Logits:
        """One row a draw: the model's, or what its token was drawn from."""
        if not self._reports_processed:
            return logits[logits_rows]
        sampling = self._rows.sampler.prepare(rows, logits_rows, positions, self._rows.states.token_ids)
        return self._model.processed_logits(logits, sampling, token_ids)
