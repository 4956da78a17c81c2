"""Lanes: work for one request that takes long, on threads, so that the streams of everyone else go on meanwhile.

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

T = TypeVar("T")

Lane = Literal["short", "long", "huge", "templates", "answers"]

_NUM_THREADS: dict[Lane, int] = {"short": 2, "long": 2, "huge": 1, "templates": 1, "answers": 1}


class Lanes:
    """Owner of a front end's threads for its requests. All calls from the event loop's thread."""

    def __init__(self) -> None:
        self._executors: dict[Lane, ThreadPoolExecutor] = {}

    async def run(self, lane: Lane, work: Callable[[], T]) -> T:
        """Work that has not begun when its caller is cancelled never does."""
        if lane not in self._executors:
            self._executors[lane] = ThreadPoolExecutor(_NUM_THREADS[lane], thread_name_prefix=f"octavo-{lane}")
        return await asyncio.get_running_loop().run_in_executor(self._executors[lane], work)


def lane_for(size: int) -> Lane:
    """size: characters, or things of which each takes as long."""
    if size <= 64 * 1024:
        return "short"
    return "long" if size <= 2**20 else "huge"
