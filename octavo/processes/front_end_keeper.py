"""Keeps a front end running: starts its process, watches it, and restarts it when it ends or hangs.

ends     its own requests end; it is restarted
hangs    it sends nothing for --front-end-hang-timeout seconds; it is killed, then as above
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from octavo.channel import Note
from octavo.child import Child, as_error
from octavo.observe.logging import LOGGER
from octavo.processes.engine_fleet import EngineFleet
from octavo.processes.heartbeat import Watchdog
from octavo.processes.household import GRACE_S, FrontEndTask, Household, Restarts


class FrontEndKeeper:
    """Owner of one front end's process.

    make_task: takes a number that no other process has. first_ready: called when it first serves. give_up: ends the
    server, since the front end does not stay up. was_told_to_end: called when it has exited as it was told.
    """

    def __init__(
        self,
        house: Household,
        index: int,
        engines: EngineFleet,
        make_task: Callable[[int], FrontEndTask],
        *,
        first_ready: Callable[[], None],
        give_up: Callable[[], None],
        was_told_to_end: Callable[[], None],
    ) -> None:
        self._house = house
        self._index = index
        self._engines = engines
        self._make_task = make_task
        self._first_ready, self._give_up, self._was_told_to_end = first_ready, give_up, was_told_to_end
        self.child: Child | None = None  # None between two processes
        self.watchdog = Watchdog()
        self.has_ever_served = False
        self._restarts = Restarts()
        self._failure: Note | None = None

    def start(self) -> None:
        task = self._make_task(next(self._house.counter))
        child = Child(f"front end {self._index}", "octavo.server.front_end:main", task, [task.listening_fd])
        self.child, self.watchdog = child, Watchdog()
        self._house.listen(child.channel, partial(self._hear, child))
        for note in self._engines.up_notes:
            child.channel.send(note)

    def end_if_it_hangs(self) -> None:
        """Kill a front end that hangs."""
        if not self.watchdog.is_over(time.monotonic()):
            return
        assert self.child is not None, "a watchdog runs only while there is a process"
        LOGGER.error(
            "front end %d hangs: nothing was heard of it for %g s; process %d is killed. If it only needs longer, "
            "raise --front-end-hang-timeout",
            *(self._index, self.watchdog.patience_s, self.child.process.pid),
        )
        self.watchdog.rest()
        self.child.kill()

    def tell(self, note: Note) -> None:
        if self.child is not None:
            self.child.channel.send(note)

    def _hear(self, child: Child) -> None:
        for note in child.channel.receive():
            if note.kind == "ready":
                self._restarts.serves(time.monotonic())
                if not self.has_ever_served:
                    self.has_ever_served = True
                    self._first_ready()
            elif note.kind == "alive":
                self.watchdog.heard(time.monotonic(), note.seconds)
            elif note.kind == "failed":
                self._failure = note
        if not child.channel.is_open:
            self._house.leave(child.channel)
            self._is_gone(child, child.reap(GRACE_S))

    def _is_gone(self, child: Child, how: str) -> None:
        index, restarts = self._index, self._restarts
        self.child = None
        self.watchdog.rest()
        self._engines.front_end_gone(index, child.process.pid)
        if self._house.is_stopping:
            self._was_told_to_end()
            return
        failure, self._failure = self._failure, None
        if not self.has_ever_served:
            raise as_error(failure, f"front end {index} ended with {how} before it could serve")
        delay = restarts.next_delay(time.monotonic(), is_excused=restarts.has_served)
        if delay is None:
            LOGGER.error("front end %d ended with %s; it does not stay up, so the server ends", index, how)
            self._give_up()
            return
        LOGGER.error("front end %d ended with %s; starting it again in %g s", index, how, delay)
        self._house.later(delay, self._house.unless_stopping(self.start))
