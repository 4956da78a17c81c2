"""DeviceGrammars: what a device does for rows with grammars: draws under masks, and jumps over forced tokens.

    host      result 1 | masks of step 2, in pinned memory | plan 3 ...
    device    [ step 2 .......................... logits ][ masks copied | mask | draw | append ][ step 3 ...

A step of decodes draws by one graph. If rows have other edits of their logits as well, or report log-probabilities, all
masks are among the columns of a sampling batch, as every device takes them (`sampling/columns.py`).
"""

from __future__ import annotations

import numpy as np
import torch

from octavo.kernels.arrays import IntArray
from octavo.kernels.cuda.model import TritonModel
from octavo.kernels.triton.sampling.masked_rows import mask_rows
from octavo.messages import StepResult
from octavo.sampling.sampler import outputs_of
from octavo.worker.cuda_graphs import DecodeSteps
from octavo.worker.device_rows import DeviceRows
from octavo.worker.forced_tokens import with_forced
from octavo.worker.launched_steps import LaunchedStep, LaunchedSteps
from octavo.worker.rows import LiveRows


class DeviceGrammars:
    """Owner of the masks on both sides."""

    def __init__(
        self,
        model: TritonModel,
        live: LiveRows,
        rows: DeviceRows,
        decodes: DecodeSteps,
        launched: LaunchedSteps,
        max_num_seqs: int,
    ) -> None:
        self._model, self._live, self._rows = model, live, rows
        self._decodes, self._launched = decodes, launched
        self._states, self._sampler = live.states, live.sampler
        self._max_num_seqs = max_num_seqs
        self._device_rows, self._device_masks = _parted(model.token_masks, max_num_seqs)
        self._host: _HostMasks | None = None  # pinned with the first grammar

    def takes(self, rows: IntArray) -> bool:
        """Whether these rows, of which some have a grammar, are drawn here."""
        return self._sampler.has_masks_alone(rows)

    def warm_up(self) -> None:
        """Draw for no row, with all kernels that grammars need."""
        none = np.zeros(0, np.int32)
        self._rows.flush(none, 1)
        self.draw(self._decodes.run(1, "logits"), none, none, none, is_step=True)

    def draw(
        self, logits: torch.Tensor, rows: IntArray, logits_rows: IntArray, positions: IntArray, *, is_step: bool
    ) -> torch.Tensor:
        """The tokens of these rows. is_step: the logits are those of the step that `DecodeSteps` ran last, padded."""
        num_masks = self._send(rows, logits_rows, positions, len(logits) if is_step else 0)
        if is_step:
            masks = self._device_rows[: len(logits)], self._device_masks[: len(logits)]
            tokens = self._decodes.draw_masked(logits, *masks, has_filters=self._sampler.has_filters(rows))
            return tokens[: len(rows)]
        mask_rows(logits, self._device_rows[:num_masks], self._device_masks[:num_masks], chained=self._model.chained)
        sampling = self._sampler.prepare(rows, logits_rows, positions, self._states.token_ids, is_masked=True)
        tokens = self._model.launch_sample(logits, sampling)
        self._rows.advance(rows, tokens)
        return tokens

    def force(self, step: LaunchedStep, result: StepResult) -> StepResult:
        """A step's result with the tokens that its own entail. A step launched since may have drawn the first of them
        again: it was launched for a row that is no longer as it was."""
        runs = range(len(step.rows)) if step.draws is None else np.flatnonzero(step.draws.counts).tolist()
        places = zip(runs, step.rows.tolist(), (step.positions + 1).tolist(), strict=True)
        there = self._launched.still_there(step).tolist()
        grammars = self._live.grammars.rows
        constrained = [place for place, same in zip(places, there, strict=True) if same and place[1] in grammars]
        return with_forced(result, self._live, constrained, self._jump)

    def _jump(self, rows: list[int]) -> None:
        """The host has given these rows tokens."""
        self._rows.touch(rows)
        self._launched.enter(rows)

    def _send(self, rows: IntArray, logits_rows: IntArray, positions: IntArray, size: int) -> int:
        """Make the masks and copy them, padded to `size` -> how many there are."""
        if self._host is None:
            self._host = _HostMasks(self._model.token_masks, self._max_num_seqs)
        self._host.wait()
        host, grammars = self._host, self._live.grammars
        entries, found, starts, ends = self._sampler.constrained(rows, positions)
        num_masks, numbers = len(entries), found.tolist()
        host.rows[:num_masks], host.rows[num_masks:size] = logits_rows[entries], -1
        masks = host.masks[:num_masks]
        if num_masks and not grammars.fill_again(masks, numbers, (ends - starts).tolist()):
            grammars.fill(masks, numbers, outputs_of(self._states.token_ids, found, starts, ends))
        host.send(num_masks)
        return num_masks


class _HostMasks:
    """Where the host makes masks: rows and masks are views of pinned memory, as large as the device's."""

    def __init__(self, device: torch.Tensor, max_num_seqs: int) -> None:
        self._device, self._max_num_seqs = device, max_num_seqs
        self._pinned = torch.zeros(device.shape, dtype=torch.int32, pin_memory=device.is_cuda)
        self.rows, self.masks = (part.numpy() for part in _parted(self._pinned, max_num_seqs))
        self._copied = torch.cuda.Event() if device.is_cuda else None  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Until the masks of the draw before have been copied. Mostly its tokens have come, so they have."""
        if self._copied is not None:
            self._copied.synchronize()

    def send(self, num_masks: int) -> None:
        """Copy all rows and so many masks, in stream order."""
        used = self._max_num_seqs + num_masks * self.masks.shape[1]
        self._device[:used].copy_(self._pinned[:used], non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def _parted(flat: torch.Tensor, max_num_seqs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of logits that have a mask, and the masks."""
    return flat[:max_num_seqs], flat[max_num_seqs:].view(max_num_seqs, -1)
