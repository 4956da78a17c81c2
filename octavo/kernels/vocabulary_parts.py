"""VocabularyPart: a rank's compiled model, whose logits are those of a part of the vocabulary.

    rank 0     logits of tokens 0 .. 79    ┐  gathered    ┌  the same rows on both, the same draws from them
    rank 1     logits of tokens 80 .. 159  ┘ ──────────▶  └

For devices that compute in the host's memory. All ranks make the same calls, so they gather in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.kernels.device import CompiledModel, StepBatch
from octavo.kernels.ops import FloatArray, IntArray
from octavo.sampling.columns import SamplingBatch

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives


class PartedLogits:
    """Logits [N, V], of which this rank has computed the columns `own`."""

    def __init__(self, own: FloatArray, vocab_size: int, ranks: Collectives) -> None:
        self._own, self._ranks = own, ranks
        self._whole: FloatArray | None = None
        self.shape = (len(own), vocab_size)

    def whole(self) -> FloatArray:
        """All columns. The first call gathers them, on all ranks at once."""
        if self._whole is None:
            (num_rows, vocab_size), num_ranks = self.shape, self._ranks.size
            ends = [(rank + 1) * vocab_size // num_ranks for rank in range(num_ranks)]
            widths = np.diff(ends, prepend=0)
            sent = np.zeros((num_rows, int(max(widths))), np.float32)
            sent[:, : self._own.shape[1]] = self._own
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

    def forward(self, batch: StepBatch) -> None:
        self._model.forward(batch)

    def logits(self, token_indices: IntArray) -> PartedLogits:
        return PartedLogits(self._model.logits(token_indices), self._vocab_size, self._ranks)

    def sample(self, logits: PartedLogits, batch: SamplingBatch) -> IntArray:
        return self._model.sample(logits.whole(), batch)

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
