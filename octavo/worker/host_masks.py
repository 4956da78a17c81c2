"""HostMasks: where the host makes the masks of a step, and where the tokens come that are drawn under them.

    host, pinned    rows of logits | masks            tokens
                          │ copied                       ▲ copied
    device          rows of logits | masks | draw ───────┘

A graph of a draw has both copies in it: one launch in place of three. So the memory stays the same, and is used again
once the step's tokens have come.
"""

from __future__ import annotations

import torch

from octavo.kernels.arrays import IntArray


class HostMasks:
    """Owner of the pinned memory. rows, masks: views of it, [max_num_seqs] and [max_num_seqs, words]."""

    def __init__(self, device_masks: torch.Tensor, max_num_seqs: int) -> None:
        """device_masks: int32, flat: rows of logits, and their masks."""
        self._device, self._max_num_seqs = device_masks, max_num_seqs
        is_gpu = device_masks.is_cuda
        self._pinned = torch.zeros(device_masks.shape, dtype=torch.int32, pin_memory=is_gpu)
        self.tokens = torch.zeros(max_num_seqs, dtype=torch.int32, pin_memory=is_gpu)
        self.rows: IntArray = self._pinned[:max_num_seqs].numpy()
        self.masks: IntArray = self._pinned[max_num_seqs:].view(max_num_seqs, -1).numpy()
        self._used = torch.cuda.Event() if is_gpu else None  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Until the masks of the draw before have been copied. Mostly its tokens have come, so they have."""
        if self._used is not None:
            self._used.synchronize()

    def name(self, logits_rows: IntArray, size: int) -> None:
        """Say which rows of logits the first masks are for. The rest, up to `size`, is padding."""
        self.rows[: len(logits_rows)], self.rows[len(logits_rows) : size] = logits_rows, -1

    def copy(self, num: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy the first masks to the device, in stream order -> rows of logits [num], and masks [num, words] there."""
        first = self._max_num_seqs
        masks = self._device[first:].view(first, -1)[:num]
        self._device[: first + masks.numel()].copy_(self._pinned[: first + masks.numel()], non_blocking=True)
        return self._device[:num], masks

    def launched(self) -> None:
        """All that reads or writes the pinned memory has been launched."""
        if self._used is not None:
            self._used.record()
