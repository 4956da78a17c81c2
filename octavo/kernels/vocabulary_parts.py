"""VocabularyPart: a rank's compiled model, whose logits are those of a part of the vocabulary.

    rank 0   logits of tokens 0 .. 79     best 80: 17  3 ┐  one small exchange   3  17  92  101  ->  the same draws
    rank 1   logits of tokens 80 .. 159   best: 101  92  ┘                       (candidates, by id)   on all ranks

The best tokens of each part suffice for draws that look at no others: greedy ones, and those with a top_k that is not
large. For all else the logits are gathered whole: penalties, a mass over the vocabulary, log-probabilities.

For devices that compute in the host's memory. All ranks make the same calls, so they exchange in the same order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.kernels.adapters import AdapterSource
from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.block_mover import BlockMover
from octavo.kernels.device import CompiledModel, StepBatch
from octavo.sampling.columns import SamplingBatch

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives

MAX_CANDIDATES = 64  # of each part


class PartedLogits:
    """Logits [N, V], of which this rank has computed the columns `own`. first: the token of its first column."""

    def __init__(self, own: FloatArray, vocab_size: int, ranks: Collectives) -> None:
        self.own, self._ranks = own, ranks
        self.shape = (len(own), vocab_size)
        self._starts = [rank * vocab_size // ranks.size for rank in range(ranks.size + 1)]
        self.first = self._starts[ranks.rank]
        self._whole: FloatArray | None = None

    @property
    def is_whole(self) -> bool:
        return self._whole is not None

    def whole(self) -> FloatArray:
        """All columns. The first call gathers them, on all ranks at once."""
        if self._whole is None:
            widths = np.diff(self._starts).tolist()
            sent = np.zeros((len(self.own), max(widths)), np.float32)
            sent[:, : self.own.shape[1]] = self.own
            parts = self._ranks.gather_arrays(sent)
            self._whole = np.concatenate([part[:, :width] for part, width in zip(parts, widths, strict=True)], axis=1)
        return self._whole

    def __getitem__(self, rows: Any) -> FloatArray:
        chosen: FloatArray = self.whole()[rows]
        return chosen


class VocabularyPart:
    """Implements `octavo.kernels.device.CompiledModel`."""

    def __init__(self, model: CompiledModel, vocab_size: int, ranks: Collectives) -> None:
        self._model, self._vocab_size, self._ranks = model, vocab_size, ranks
        self._most = min(MAX_CANDIDATES, vocab_size // ranks.size // 2 - 1)  # fewer numbers than a part has

    def forward(self, batch: StepBatch) -> None:
        self._model.forward(batch)

    def prepare_adapter(self, source: AdapterSource) -> Any:
        return self._model.prepare_adapter(source)

    def place_adapter(self, slot: int, prepared: Any) -> None:
        self._model.place_adapter(slot, prepared)

    def logits(self, token_indices: IntArray) -> PartedLogits:
        return PartedLogits(self._model.logits(token_indices), self._vocab_size, self._ranks)

    def sample(self, logits: PartedLogits, batch: SamplingBatch) -> IntArray:
        count = 0 if logits.is_whole or batch.has_edits else self._num_candidates(batch)
        found = self._candidates(logits, count) if count else None
        if found is None or _may_lack(found, batch, count):
            return self._model.sample(logits.whole(), batch)
        ids, values, _ = found
        columns = self._model.sample(values, replace(batch, top_k=np.minimum(batch.top_k, values.shape[1])))
        drawn: IntArray = np.where(columns < 0, -1, ids[batch.logits_rows, columns]).astype(np.int32)
        return drawn

    def host_logits(self, logits: PartedLogits, rows: IntArray) -> FloatArray:
        return logits[rows]

    def processed_logits(self, logits: PartedLogits, batch: SamplingBatch, drawn: IntArray) -> FloatArray:
        processed: FloatArray = self._model.processed_logits(logits.whole(), batch, drawn)
        return processed

    def top_logprobs(
        self, logits: FloatArray | PartedLogits, tokens: IntArray, k: int, *, as_logits: bool = False
    ) -> tuple[IntArray, FloatArray, IntArray]:
        whole = logits.whole() if isinstance(logits, PartedLogits) else logits
        return self._model.top_logprobs(whole, tokens, k, as_logits=as_logits)

    def copy_blocks(self, source: IntArray, target: IntArray) -> None:
        self._model.copy_blocks(source, target)

    def mover(self) -> BlockMover:
        return self._model.mover()

    def _num_candidates(self, batch: SamplingBatch) -> int:
        """How many of a part's best tokens its draws may choose from; 0: any."""
        is_drawn = batch.temperature > 0
        if (batch.top_k[is_drawn] < 1).any():
            return 0
        count = int(batch.top_k[is_drawn].max(initial=1))
        return count if count <= self._most else 0

    def _candidates(self, logits: PartedLogits, count: int) -> tuple[IntArray, FloatArray, FloatArray]:
        """The best tokens of all parts, by id: ids and logits [N, size * count], and the best logit that was left out.
        A row with a NaN has NaNs only."""
        own = logits.own
        zeros = np.zeros(len(own), np.int32)
        ids, values, _ = self._model.top_logprobs(own, zeros, count + 1, as_logits=True)
        values[np.isnan(own).any(axis=1)] = np.nan
        sent = np.concatenate([values[:, 1:], (ids[:, 1:] + np.int32(logits.first)).view(np.float32)], axis=1)
        told = self._ranks.gather_arrays(sent)  # [size, N, 2 * (count + 1)]
        all_values, all_ids = told[..., : count + 1], np.ascontiguousarray(told[..., count + 1 :]).view(np.int32)
        left_out: FloatArray = all_values[..., count].max(axis=0)
        by_rows = (len(own), -1)
        found = all_ids[..., :count].transpose(1, 0, 2).reshape(by_rows)
        order = np.argsort(found, axis=1)
        joined = np.take_along_axis(all_values[..., :count].transpose(1, 0, 2).reshape(by_rows), order, axis=1)
        joined[np.isnan(joined).any(axis=1)] = np.nan
        return np.take_along_axis(found, order, axis=1), np.ascontiguousarray(joined), left_out


def _may_lack(found: tuple[IntArray, FloatArray, FloatArray], batch: SamplingBatch, count: int) -> bool:
    """Whether a token that was left out is as good as the last one that an entry may draw: top_k keeps equals."""
    _, values, left_out = found
    is_drawn = batch.temperature > 0
    if not is_drawn.any():
        return False
    rows, top_k = batch.logits_rows[is_drawn], batch.top_k[is_drawn]
    best_first = -np.sort(-values[rows], axis=1)
    last_kept = np.take_along_axis(best_first, top_k[:, None] - 1, axis=1)[:, 0]
    return bool((left_out[rows] >= last_kept).any())
