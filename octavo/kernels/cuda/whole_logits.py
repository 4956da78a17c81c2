"""WholeLogits: gathers the logits that ranks have computed of parts of the vocabulary.

    rank 0   [N, 80]  ┐                         ┌ rank 0's [N, 80] | rank 1's [N, 80]  ->  [N, 160]
    rank 1   [N, 80]  ┘ one gather, [2, N, 80]  └ the same on both

Its memory is allocated once, so that a CUDA graph can hold the gather.
"""

from __future__ import annotations

import torch

from octavo.distributed.collectives import Collectives
from octavo.kernels.device import StepLimits


class WholeLogits:
    """ranks: None: this one has the whole vocabulary. tensors: its memory."""

    def __init__(self, ranks: Collectives | None, limits: StepLimits, dtype: torch.dtype, device: torch.device) -> None:
        self._ranks = ranks if ranks is not None and ranks.size > 1 else None
        self._vocab_size = limits.vocab_size
        self.tensors: tuple[torch.Tensor, ...] = ()
        if ranks is None or self._ranks is None:
            return
        self._starts = [rank * limits.vocab_size // ranks.size for rank in range(ranks.size + 1)]
        self._width = max(end - start for start, end in zip(self._starts, self._starts[1:], strict=False))
        rows = limits.max_num_seqs

        def empty(size: int) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        numbers = rows * self._width, ranks.size * rows * self._width, rows * limits.vocab_size
        self.tensors = self._sent, self._together, self._whole = empty(numbers[0]), empty(numbers[1]), empty(numbers[2])

    def of(self, own: torch.Tensor) -> torch.Tensor:
        """own [N, this rank's tokens] -> [N, V], valid until the next call."""
        if self._ranks is None:
            return own
        rows, width = len(own), self._width
        if own.shape[1] < width:
            sent = self._sent[: rows * width].view(rows, width)
            sent[:, : own.shape[1]].copy_(own)
        else:
            sent = own
        together = self._together[: self._ranks.size * rows * width].view(-1, rows, width)
        self._ranks.gather(sent, together)
        whole = self._whole[: rows * self._vocab_size].view(rows, self._vocab_size)
        for rank, start in enumerate(self._starts[:-1]):
            end = self._starts[rank + 1]
            whole[:, start:end].copy_(together[rank, :, : end - start])
        return whole
