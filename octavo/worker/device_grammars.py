"""DeviceGrammars: what a device does for rows with grammars: draws under masks, and jumps over forced tokens.

    host      tokens 1 read | masks of step 2, in pinned memory | result 1 | plan 3 ...
    device    [ step 2 .................... logits ][ masks copied | mask | draw | append | tokens copied ][ step 3 ...

A step of decodes draws by one graph, which has the copies in it (`host_masks.py`). If rows have other edits of their
logits as well, or report log-probabilities, all masks are among the columns of a sampling batch, as every device takes
them (`sampling/columns.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.kernels.arrays import IntArray
from octavo.kernels.cuda.model import TritonModel
from octavo.kernels.triton.sampling.masked_rows import mask_rows
from octavo.messages import StepResult
from octavo.sampling.sampler import outputs_of
from octavo.worker.cuda_graphs import DecodeSteps
from octavo.worker.device_rows import DeviceRows
from octavo.worker.forced_tokens import ConstrainedRuns, with_forced
from octavo.worker.host_masks import HostMasks
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
        self._host: HostMasks | None = None  # pinned with the first grammar
        self._last: _StepRows | None = None

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
        """The tokens of these rows. is_step: the logits are those of the step that `DecodeSteps` ran last, padded, and
        the tokens come to pinned memory, where the next draw overwrites them."""
        of = self._of(rows)
        masks = self._made(of, logits_rows, positions, len(logits) if is_step else 0)
        if is_step:
            self._decodes.draw_masked(logits, masks, has_filters=of.has_filters)
            masks.launched()
            return masks.tokens[: len(rows)]
        mask_rows(logits, *masks.copy(len(of.numbers)))
        masks.launched()
        sampling = self._sampler.prepare(rows, logits_rows, positions, self._states.token_ids, is_masked=True)
        tokens = self._model.launch_sample(logits, sampling)
        self._rows.advance(rows, tokens)
        return tokens

    def force(self, step: LaunchedStep, result: StepResult) -> StepResult:
        """A step's result with the tokens that its own entail. A step launched since may have drawn the first of them
        again: it was launched for a row that is no longer as it was. If that step waits to be drawn, its masks are made
        here."""
        there = self._launched.still_there(step)
        if step.draws is None and there.all():
            of = self._of(step.rows)
            ends = step.positions.take(of.runs) + 1
            constrained = ConstrainedRuns(of.runs, of.run_rows, of.run_starts, ends.tolist())
        else:
            has_token = True if step.draws is None else step.draws.counts > 0
            some = np.flatnonzero(there & has_token)
            places, numbers, starts = self._live.grammars.among(step.rows[some].tolist())
            runs = some[places]
            constrained = ConstrainedRuns(runs.tolist(), numbers, starts, (step.positions[runs] + 1).tolist())
        memory = self._room if self._launched.is_draw_left else None
        return with_forced(result, self._live, constrained, memory, self._jump)

    def _jump(self, rows: list[int]) -> None:
        """The host has given these rows tokens."""
        self._rows.touch(rows)
        self._launched.enter(rows)

    def _of(self, rows: IntArray) -> _StepRows:
        """What is known of these rows. The same array comes step after step, until a sequence enters or leaves."""
        num_changes = self._live.grammars.num_changes
        if self._last is None or self._last.rows is not rows or self._last.num_changes != num_changes:
            self._last = _StepRows.of(rows, self._live)
        return self._last

    def _memory(self) -> HostMasks:
        if self._host is None:
            self._host = HostMasks(self._model.token_masks, self._max_num_seqs)
        return self._host

    def _room(self, num_masks: int) -> IntArray:
        """Where masks are copied from, once the ones before have been."""
        host = self._memory()
        host.wait()
        return host.masks[:num_masks]

    def _made(self, of: _StepRows, logits_rows: IntArray, positions: IntArray, size: int) -> HostMasks:
        """The masks, which are made if they are not made yet, padded to `size`."""
        num_masks, ends = len(of.numbers), positions.take(of.entries)
        lens = (ends - of.starts).tolist()
        if not num_masks or self._live.grammars.made_ahead(of.numbers, lens) is None:
            room = self._room(num_masks)
            if num_masks:
                outputs = outputs_of(self._states.token_ids, of.found, of.starts, ends)
                self._live.grammars.fill(room, of.numbers, outputs)
        self._memory().name(logits_rows[of.entries], size)
        return self._memory()


@dataclass(frozen=True, slots=True, eq=False)
class _StepRows:
    """A step's rows. entries, found, numbers, starts: of those with a grammar the entries, the rows, and where their
    outputs begin. runs, run_rows, run_starts: the same of those with a grammar or a budget of thoughts."""

    rows: IntArray
    entries: NDArray[np.intp]
    found: IntArray
    numbers: list[int]
    starts: IntArray
    runs: list[int]
    run_rows: list[int]
    run_starts: list[int]
    has_filters: bool
    num_changes: int

    @classmethod
    def of(cls, rows: IntArray, live: LiveRows) -> _StepRows:
        entries, found, starts = live.sampler.constrained(rows)
        given = found.tolist(), starts, *live.grammars.among(rows.tolist())
        return cls(rows, entries, found, *given, live.sampler.has_filters(rows), live.grammars.num_changes)
