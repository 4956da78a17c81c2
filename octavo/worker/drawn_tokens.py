"""Drawn tokens on their way from a device to the host, several steps at once.

device   tokens of step 2 | step 3 ...            each step's device-to-host copy follows its draw in stream order
pinned   [ slot a: step 1 ][ slot b: step 2 ]     a slot is reused once its step has been waited for
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.kernels.ops import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """One step's tokens in flight."""

    slot: torch.Tensor
    num_tokens: int
    copied: torch.cuda.Event | None  # None: the device is the host itself


class DrawnTokens:
    """Owns the slots, one per step in flight."""

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        self._max_num_seqs = max_num_seqs
        self._is_gpu = device.type == "cuda"
        self._free: list[torch.Tensor] = []

    def send(self, tokens: torch.Tensor) -> Fetch:
        """Copy tokens [N] int32 in stream order. Work launched later may overwrite them."""
        slot = self._free.pop() if self._free else self._new_slot()
        slot[: len(tokens)].copy_(tokens, non_blocking=True)
        copied = None
        if self._is_gpu:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        return Fetch(slot, len(tokens), copied)

    def wait(self, fetch: Fetch) -> IntArray:
        """Return the tokens and free the slot; call it once per fetch."""
        if fetch.copied is not None:
            fetch.copied.synchronize()
        token_ids: IntArray = fetch.slot[: fetch.num_tokens].numpy().copy()
        self._free.append(fetch.slot)
        return token_ids

    def _new_slot(self) -> torch.Tensor:
        return torch.zeros(self._max_num_seqs, dtype=torch.int32, pin_memory=self._is_gpu)
