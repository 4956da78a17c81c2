"""A real engine as a simulation drives one: it runs by a clock, which counts what the engine takes and no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from octavo.engine.core import EngineCore
from octavo.request import Request
from octavo.scheduler.step import SequenceUpdate
from octavo.simulator.requests import Fresh, RequestMaker
from octavo.simulator.trace import TraceRequest

Clock = Callable[[], float]
_STEPS_BETWEEN = 16
_OVERSLEPT_S = 0.001  # the most by which a sleep may take too long


class RealEngine:
    """A core that runs by a clock. Where that stands still while nothing runs, waiting skips the time. is_overlapped:
    its device goes on by itself, so all time counts; else only what the core takes. between: what is done between steps
    now and then, outside the engine's time."""

    def __init__(
        self,
        core: EngineCore,
        clock: Clock,
        is_wall: bool,
        between: Callable[[], None] | None = None,
        *,
        is_overlapped: bool = False,
    ) -> None:
        self._core = core
        self._clock = clock
        self._is_wall = is_wall
        self._between = between
        self._is_overlapped = is_overlapped
        self._num_steps = 0
        self._begin = self._left = clock()

    @property
    def now(self) -> float:
        return (self._clock() if self._is_overlapped else self._left) - self._begin

    @property
    def has_unfinished(self) -> bool:
        return self._core.has_unfinished

    @property
    def num_used_blocks(self) -> int:
        return self._core.num_used_blocks

    def add(self, request: Request) -> None:
        with self._counted():
            self._core.add_request(request)

    def step(self) -> list[SequenceUpdate]:
        self._num_steps += 1
        if self._between is not None and self._num_steps % _STEPS_BETWEEN == 0:
            self._between()
        with self._counted():
            return self._core.step()

    def wait_until(self, time_: float) -> None:
        with self._counted():
            if self._is_wall:
                end = self._begin + time_
                time.sleep(max(0.0, end - self._clock() - _OVERSLEPT_S))
                while self._clock() < end:
                    pass
            else:
                self._begin -= max(0.0, time_ - self.now)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if not self._is_overlapped:
            self._begin += self._clock() - self._left
        yield
        self._left = self._clock()


class ReadyRequests(RequestMaker):
    """Requests that were made before they arrive: what makes them is no part of the engine."""

    def __init__(self, fresh: Fresh, asked: list[TraceRequest]) -> None:
        super().__init__(fresh)
        self._ready = iter([super(ReadyRequests, self).request(one, 0.0, []) for one in asked])

    def request(self, asked: TraceRequest, arrival: float, history: Sequence[int]) -> Request:
        request = next(self._ready)
        request.arrival_time = arrival
        return request
