"""Steps that were launched on a device, and the copies that bring their tokens to the host.

    device   tokens of step 2 | step 3 ...            each step's device-to-host copy follows its draw
    pinned   [ slot a: step 1 ][ slot b: step 2 ]     a slot is reused once its step's tokens have been read

Tokens that rows keep for some steps (`triton/rows.py`) are copied beside the next step, others in stream order.

A step's tokens enter the host's rows when they are fetched, in the order of the steps. A draw that needs the tokens of
the step before on the host, as under a grammar, is launched late: as soon as they are there, while the device computes
the logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.errors import EngineDeadError
from octavo.kernels.arrays import IntArray
from octavo.messages import Candidates, LogprobRow, StepPlan, StepResult
from octavo.worker.rows import RequestStates
from octavo.worker.runner import Draws, with_faults


@dataclass(slots=True, eq=False)
class LaunchedStep:
    """A PendingStep. draws: None for a step of decodes, which draws one token a row. logprobs: by draw. tenants: the
    rows' counts of tenants when the step was launched. fetch: None until the draw is launched; draw_late: launches it.
    token_ids: None until they are fetched. complete: adds to the result what its tokens entail.
    faults: of users' functions, by row."""

    steps: LaunchedSteps
    plan: StepPlan
    rows: IntArray
    positions: IntArray
    tenants: IntArray
    fetch: _Fetch | None = None
    draw_late: Callable[[], torch.Tensor] | None = None
    fault: Exception | None = None
    draws: Draws | None = None
    logprobs: dict[int, LogprobRow] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[LogprobRow]] = field(default_factory=dict)
    candidates: dict[int, Candidates] = field(default_factory=dict)
    token_ids: IntArray | None = None
    complete: Callable[[LaunchedStep, StepResult], StepResult] | None = None
    faults: dict[int, str] = field(default_factory=dict)

    def result(self) -> StepResult:
        made = self._drawn(self.steps.fetch(self))
        made = with_faults(made, self.plan, self.faults) if self.faults else made
        made = made if self.complete is None else self.complete(self, made)
        self.steps.finish_draw()  # which has waited for these tokens, and the device for it
        return made

    def _drawn(self, tokens: IntArray) -> StepResult:
        if self.draws is None:
            rows = {draw: [row] for draw, row in self.logprobs.items()}
            return StepResult(self.plan.step_id, tokens.tolist(), logprobs=rows)
        all_kept = np.ones(len(tokens), np.bool_)
        reported = self.logprobs, self.prompt_logprobs, self.candidates
        return self.draws.result(self.plan.step_id, tokens, all_kept, *reported)


class LaunchedSteps:
    """Owner of the pinned slots, and of the steps whose tokens are not on the host yet."""

    def __init__(self, states: RequestStates, max_num_seqs: int, device: torch.device) -> None:
        self._states = states
        self._is_gpu = device.type == "cuda"
        self._steps: deque[LaunchedStep] = deque()
        self._free_slots: dict[torch.Size, list[torch.Tensor]] = {}
        self._aside: torch.cuda.Stream | None = None
        self._max_num_seqs = max_num_seqs
        self._num_unknown: IntArray = np.zeros(max_num_seqs, np.int32)  # tokens of a row that are not on the host
        self._tenant: IntArray = np.zeros(max_num_seqs, np.int32)  # how many sequences have been in a row

    def enter(self, rows: list[int]) -> None:
        """New sequences have entered these rows."""
        self._tenant[rows] += 1
        self._num_unknown[rows] = 0

    def add(self, plan: StepPlan, rows: IntArray, positions: IntArray) -> LaunchedStep:
        """A step that draws a token for each of these rows."""
        self._states.reserve(rows, positions)
        self._num_unknown[rows] += 1
        step = LaunchedStep(self, plan, rows, positions, self._tenant[rows])
        self._steps.append(step)
        return step

    def send(self, step: LaunchedStep, tokens: torch.Tensor) -> None:
        """A step's draw of tokens [N] int32 has been launched. Their copy is queued in stream order, so work launched
        later may overwrite them. Tokens of a GPU that come to pinned memory are not copied again: they stay there until
        they are fetched."""
        is_lent = tokens.is_cuda or not self._is_gpu
        slot = tokens
        if is_lent:
            slot = self._slot((self._max_num_seqs,))
            slot[: len(tokens)].copy_(tokens, non_blocking=True)
        step.fetch = _Fetch(slot, np.arange(len(tokens)), self._event(), is_lent)

    def send_kept(self, step: LaunchedStep, kept: torch.Tensor) -> None:
        """As `send`, of tokens that `advance_rows` kept, [rows, K]. Work launched later does not wait for the copy."""
        slot = self._slot(kept.shape)
        places = step.rows.astype(np.int64) * kept.shape[1] + step.positions % kept.shape[1]
        if self._is_gpu:
            self._aside = self._aside or torch.cuda.Stream(kept.device)  # type: ignore[no-untyped-call]
            self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            slot.copy_(kept, non_blocking=True)
            step.fetch = _Fetch(slot, places, self._event())

    def finish_draw(self) -> None:
        """Launch the last step's draw, if that was left for later. A fault is that step's."""
        step = self._steps[-1] if self._steps else None
        if step is None or step.draw_late is None:
            return
        draw, step.draw_late = step.draw_late, None
        try:
            self.send(step, draw())
        except Exception as fault:
            step.fault = fault
            if step in self._steps:
                self._steps.remove(step)

    @property
    def is_draw_left(self) -> bool:
        """Whether the last step's draw was left for later."""
        return bool(self._steps) and self._steps[-1].draw_late is not None

    def unknown(self, rows: IntArray) -> NDArray[np.intp]:
        """The indices of those rows whose last token is not on the host."""
        return np.flatnonzero(self._num_unknown[rows])

    def still_there(self, step: LaunchedStep) -> NDArray[np.bool_]:
        """Which of a step's rows have the tokens that it was launched with."""
        there: NDArray[np.bool_] = self._tenant[step.rows] == step.tenants
        return there

    def fetch(self, step: LaunchedStep) -> IntArray:
        """A step's tokens. Those of all steps before it are fetched first."""
        try:
            while step.token_ids is None:
                if step.fault is not None:
                    raise step.fault
                self._fetch_oldest()
        except RuntimeError as error:
            if (fault := fault_of(error)) is not error:
                raise fault from error
            raise
        return step.token_ids

    def fetch_all(self, but: LaunchedStep | None = None) -> None:
        """The tokens of all steps; but: of all before this one."""
        while self._steps and self._steps[0] is not but:
            self._fetch_oldest()

    def close(self) -> None:
        self._steps.clear()

    def _fetch_oldest(self) -> None:
        step = self._steps[0]
        if step.fetch is None:
            self.finish_draw()  # only the last step's can be missing
        if step.fetch is None:
            return  # its draw failed
        self._steps.popleft()
        step.token_ids = self._wait(step.fetch)
        same = self.still_there(step)
        self._states.fill(step.rows[same], step.positions[same], step.token_ids[same])
        self._num_unknown[step.rows[same]] -= 1

    def _event(self) -> torch.cuda.Event | None:
        if not self._is_gpu:
            return None
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return copied

    def _wait(self, fetch: _Fetch) -> IntArray:
        if fetch.copied is not None:
            fetch.copied.synchronize()
        token_ids: IntArray = fetch.slot.view(-1).numpy()[fetch.places]
        if fetch.is_lent:
            self._free_slots[fetch.slot.shape].append(fetch.slot)
        return token_ids

    def _slot(self, shape: Sequence[int]) -> torch.Tensor:
        free = self._free_slots.setdefault(torch.Size(shape), [])
        return free.pop() if free else torch.zeros(*shape, dtype=torch.int32, pin_memory=self._is_gpu)


@dataclass(frozen=True, slots=True, eq=False)
class _Fetch:
    """One step's tokens in flight."""

    slot: torch.Tensor
    places: NDArray[np.int64]  # of the tokens in the slot
    copied: torch.cuda.Event | None  # None: the device is the host itself
    is_lent: bool = True  # the slot, to one step after the other


def fault_of(error: Exception) -> Exception:
    """The error; an EngineDeadError in place of an error of CUDA itself, with which every later call would fail."""
    if not isinstance(error, RuntimeError) or "CUDA error" not in str(error):
        return error
    lost = EngineDeadError(f"the GPU cannot be used by this process any more: {error}")
    lost.__cause__ = error
    return lost
