"""ExpertBalancer: has experts change places between ranks, as the rows of the last steps ask.

    after step   3000              3002                3003     3004     ...
                 counts: a copy    counts are read     layer 0  layer 1  ...     each moves between two steps
                 begins            and told to all

Every rank counts the same steps, so all do the same after the same step, and none waits for another's decision. The
host waits for no step: two steps later the copy has been done. Without `use_async` all of it follows the one step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from octavo.distributed.expert_placement import Slots, balanced, balancedness
from octavo.eplb_config import EPLBConfig
from octavo.messages import PendingStep, StepPlan
from octavo.observe.logging import LOGGER
from octavo.worker.runner import FailedStep

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives
    from octavo.distributed.placed_experts import PlacedExperts

_COPY_STEPS = 2  # until a copy has surely been done
Counts = NDArray[np.int64]  # [layers, experts]
Read = Callable[[], Counts]


class ExpertBalancer:
    """submit: the runner's, which this one's takes the place of."""

    def __init__(
        self, placed: PlacedExperts, ranks: Collectives, config: EPLBConfig, submit: Callable[[StepPlan], PendingStep]
    ) -> None:
        self._placed, self._ranks, self._config, self._submit = placed, ranks, config, submit
        self._step = 0
        whole, rest = divmod(config.window_size, config.step_interval)
        #: how long before a choice its window begins, if that is inside an interval
        self._begins = rest if not whole else 0
        self._starts: deque[Read] = deque([placed.count()], maxlen=max(1, whole))
        self._window: tuple[int, Read, Read] | None = None  # when it is read, and its two ends
        self._turn: _Turn | None = None
        self._logged = self._starts[0]
        self._logs = config.log_balancedness and ranks.rank == 0

    def submit(self, plan: StepPlan) -> PendingStep:
        step = self._submit(plan)
        if not plan.rows:
            return step
        try:
            self._step += 1
            self._count()
            if self._turn is not None:
                self._go_on(self._turn)
            elif self._window is not None and self._step >= self._window[0]:
                self._choose(*self._window[1:])
            if self._logs:
                self._log()
        except Exception as fault:  # the other ranks will not come either
            return FailedStep(fault)
        return step

    def _count(self) -> None:
        """Begin to copy the counts where a window begins or ends."""
        interval = self._config.step_interval
        if self._begins and self._step % interval == interval - self._begins:
            self._starts.append(self._placed.count())
        if self._step % interval == 0:
            end = self._placed.count()
            if self._window is None and self._turn is None:
                self._window = self._step + (_COPY_STEPS if self._config.use_async else 0), self._starts[0], end
            if not self._begins:
                self._starts.append(end)

    def _choose(self, start: Read, end: Read) -> None:
        self._window = None
        counts = end() - start()
        told = self._ranks.of_first(counts.flatten().tolist())
        self._turn = _Turn(np.array(told, np.int64).reshape(counts.shape), self._placed.slots, self._ranks.size)
        if not self._config.use_async:
            while self._turn is not None:
                self._go_on(self._turn)

    def _go_on(self, turn: _Turn) -> None:
        """One layer's experts move, if they have better places."""
        began, layer = perf_counter(), turn.layer
        slots = balanced(turn.counts[layer], self._placed.slots[layer], self._ranks.size)
        if slots != self._placed.slots[layer]:
            turn.num_moved += self._placed.move(layer, slots)
        turn.layer += 1
        turn.seconds.append(perf_counter() - began)
        if turn.layer < len(turn.counts):
            return
        self._turn = None
        if self._ranks.rank == 0:
            LOGGER.info("%s", turn.told(self._step, self._placed.slots))

    def _log(self) -> None:
        """The balancedness of the steps since the last such line, which the host waits for."""
        if self._step % self._config.log_balancedness_interval:
            return
        now = self._placed.count()
        counts, self._logged = now() - self._logged(), now
        even = mean_balancedness(counts, self._placed.slots, self._ranks.size)
        LOGGER.info("experts at step %s: balancedness %.3f", f"{self._step:,}", even)


class _Turn:
    """A choice of places that is being carried out, layer by layer."""

    def __init__(self, counts: Counts, slots: list[Slots], num_ranks: int) -> None:
        self.counts, self._num_ranks = counts, num_ranks
        self._before = mean_balancedness(counts, slots, num_ranks)
        self.layer = self.num_moved = 0
        self.seconds: list[float] = []

    def told(self, step: int, slots: list[Slots]) -> str:
        after = mean_balancedness(self.counts, slots, self._num_ranks)
        return (
            f"experts balanced by step {step:,}: balancedness {self._before:.3f} before, {after:.3f} after; "
            f"{self.num_moved:,} moved in {len(self.seconds)} layers, which kept the host {sum(self.seconds):.3f} s, "
            f"{1e3 * max(self.seconds):.1f} ms at most between two steps"
        )


def mean_balancedness(counts: Counts, slots: list[Slots], num_ranks: int) -> float:
    """Over layers."""
    return float(np.mean([balancedness(*layer, num_ranks) for layer in zip(counts, slots, strict=True)]))
