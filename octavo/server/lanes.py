"""Lanes: work for one request that takes long, on threads, so that the streams of everyone else go on meanwhile.

    at once     short texts: on the event loop, for a thread would cost more
    short       up to 64 thousand characters, two at a time
    long        up to a million
    huge        more: one at a time, since it takes a hundred bytes of memory a byte and seconds
    templates   chat templates that requests bring: foreign programs, which may take as long as they are let
    answers     large answers and lists, in Python: one at a time, since such threads take turns with the loop

Each lane has threads and a queue of its own, so who comes with little never waits behind who comes with much. What
runs here lets go of the interpreter, or is made of small pieces: a thread alone would not free the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

from octavo.engine.tokenizer import LONG_TEXT
from octavo.errors import EngineBusyError

T = TypeVar("T")

Lane = Literal["short", "long", "huge", "templates", "answers"]

_NUM_THREADS: dict[Lane, int] = {"short": 2, "long": 2, "huge": 1, "templates": 1, "answers": 1}
#: work that may wait in one lane; what waits holds its request's body
_MAX_WAITING = 256
_MAX_WAITING_HUGE = 16
_RETRY_AFTER_S = 5.0


class Lanes:
    """Owner of a front end's threads for its requests. All calls from the event loop's thread."""

    def __init__(self) -> None:
        self._executors: dict[Lane, ThreadPoolExecutor] = {}
        self._num_inside: dict[Lane, int] = dict.fromkeys(_NUM_THREADS, 0)

    async def run_sized(self, size: int, work: Callable[[], T]) -> T:
        """size: characters or things that the work goes through."""
        return work() if size <= LONG_TEXT else await self.run(lane_for(size), work)

    async def run(self, lane: Lane, work: Callable[[], T]) -> T:
        """Raises EngineBusyError if too many wait already. Work that has not begun when its caller is cancelled never
        does."""
        most = _NUM_THREADS[lane] + (_MAX_WAITING_HUGE if lane in ("huge", "templates") else _MAX_WAITING)
        if self._num_inside[lane] >= most:
            raise EngineBusyError(
                f"{most} other requests wait for the same kind of work ({lane} texts or answers), allowed are no more; "
                "send it again later",
                _RETRY_AFTER_S,
            )
        self._num_inside[lane] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor(lane), work)
        finally:
            self._num_inside[lane] -= 1

    def _executor(self, lane: Lane) -> ThreadPoolExecutor:
        if lane not in self._executors:
            self._executors[lane] = ThreadPoolExecutor(_NUM_THREADS[lane], thread_name_prefix=f"octavo-{lane}")
        return self._executors[lane]


def lane_for(size: int) -> Lane:
    if size <= 64 * 1024:
        return "short"
    return "long" if size <= 2**20 else "huge"
