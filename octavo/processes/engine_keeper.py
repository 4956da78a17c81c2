"""Keeps one engine running: starts its process, watches it, and restarts it when it ends or hangs.

ends     its requests fail and new ones go to other engines, if there are any; it is restarted a few times, each time
         after a longer wait
hangs    it sends nothing for --engine-hang-timeout seconds; it is killed, then as above
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from octavo.channel import Note
from octavo.child import Child, as_error
from octavo.observe.logging import LOGGER
from octavo.processes.heartbeat import Watchdog
from octavo.processes.household import GRACE_S, EngineTask, Household, Restarts, front_end_identity
from octavo.processes.step_record import who_was_computed


class Fleet(Protocol):
    """All engines together: whom a keeper tells of its own."""

    @property
    def num_deaths(self) -> dict[str, int]: ...
    def goes_up(self, keeper: EngineKeeper, card: Sequence[tuple[str, str]], is_first: bool) -> None: ...
    def goes_down(self, keeper: EngineKeeper, why: str, guilty: Sequence[str]) -> None: ...
    def accuse(self, keeper: EngineKeeper, fingerprints: Sequence[str]) -> list[str]: ...
    def clear(self, fingerprint: str) -> None: ...
    def does_not_stay_up(self, keeper: EngineKeeper) -> None: ...


class EngineKeeper:
    """Owner of an engine's process. environment: variables of that process. was_told_to_end: called when it has exited
    as it was told."""

    def __init__(
        self,
        house: Household,
        make_task: Callable[..., EngineTask],
        environment: Mapping[str, str],
        fleet: Fleet,
        was_told_to_end: Callable[[], None],
    ) -> None:
        self._house = house
        self._make_task = make_task
        self._environment = environment
        self._fleet = fleet
        self._was_told_to_end = was_told_to_end
        self.name = "the engine"
        self.child: Child | None = None
        self.address: str | None = None  # None unless the engine serves
        self.watchdog = Watchdog()
        self.has_served = False
        self.has_given_up = False
        self._restarts = Restarts()
        self._step_record = ""  # the file in which the engine records its steps' requests
        self._died_at_work = False  # whether the engine died while it computed requests
        self._hang: str | None = None  # why the engine was killed, if it was
        self._failure: Note | None = None

    def start(self) -> None:
        number = next(self._house.counter)
        self._step_record = f"{self._house.run_directory}/step-{number}"
        self._died_at_work = False
        task = self._make_task(
            address=f"ipc://{self._house.run_directory}/engine-{number}",
            step_record=self._step_record,
            num_deaths=self._fleet.num_deaths,
        )
        self.name = "the engine" if task.num_engines == 1 else task.name
        self.child = Child(task.name, "octavo.processes.engine_process:main", task, environment=self._environment)
        self.watchdog = Watchdog()
        self._house.listen(self.child.channel, partial(self._hear, self.child, task.address))

    def end_if_it_hangs(self) -> None:
        """Kill an engine that hangs. Its requests end now: a process may take long to die in a driver."""
        if not self.watchdog.is_over(time.monotonic()):
            return
        assert self.child is not None, "a watchdog runs only while there is an engine"
        silence = f"nothing was heard of it for {self.watchdog.patience_s:g} s"
        LOGGER.error(
            "%s hangs: %s; process %d is killed. If it only needs longer, raise --engine-hang-timeout",
            *(self.name, silence, self.child.process.pid),
        )
        self._hang = f"it hung ({silence}) and was killed"
        self.watchdog.rest()
        self.address = None
        self._fleet.goes_down(self, self._hang, self._find_guilty())
        self.child.kill()

    def send(self, note: Note) -> None:
        """Send a note to an engine that serves."""
        if self.child is not None and self.address is not None:
            self.child.channel.send(note)

    def front_end_gone(self, index: int, process_id: int) -> None:
        """Have the engine abort the requests of a front end that ended."""
        self.send(Note("front_end_gone", text=front_end_identity(index, process_id)))

    def stop(self) -> None:
        engine = self.child
        self.watchdog.rest()
        if engine is None:
            self._was_told_to_end()
        elif self.address is None:
            engine.kill()  # it is loading and reads no notes
        else:
            engine.channel.send(Note("stop"))
            self._house.later(GRACE_S, engine.kill)

    def _hear(self, engine: Child, address: str) -> None:
        for note in engine.channel.receive():
            if note.kind == "ready":
                self._is_ready(address, note.card)
            if note.kind in ("ready", "alive"):
                self.watchdog.heard(time.monotonic(), note.seconds)
            elif note.kind == "cleared":
                self._fleet.clear(note.text)
            elif note.kind == "failed":
                self._failure = note
        if not engine.channel.is_open:
            self._house.leave(engine.channel)
            self._is_gone(engine.reap(GRACE_S))

    def _is_ready(self, address: str, card: Sequence[tuple[str, str]]) -> None:
        self.address = address
        self._restarts.serves(time.monotonic())
        is_first, self.has_served = not self.has_served, True
        self._fleet.goes_up(self, card, is_first)

    def _find_guilty(self) -> list[str]:
        """The fingerprints of requests that too many engines have died at, this one included."""
        died_at = who_was_computed(self._step_record)
        self._died_at_work |= bool(died_at)
        guilty = self._fleet.accuse(self, died_at)
        if guilty:
            LOGGER.error("%d of the requests in the engine's last step were in another engine's: refused", len(guilty))
        return guilty

    def _is_gone(self, how: str) -> None:
        """The engine's process has ended: restart it, give up, or finish stopping."""
        self.child = self.address = None
        self.watchdog.rest()
        failure, self._failure = self._failure, None
        hang, self._hang = self._hang, None
        if self._house.is_stopping:
            self._fleet.goes_down(self, f"its process ended with {how}", [])
            self._was_told_to_end()
            return
        if not self.has_served:
            raise as_error(failure, f"the process of {self.name} ended with {how} before it could serve")
        why = hang or (failure.text if failure is not None else f"its process ended with {how}")
        guilty = self._find_guilty()
        delay = self._restarts.next_delay(time.monotonic(), is_excused=self._died_at_work)
        if delay is None:
            LOGGER.error("%s went down: %s; it does not stay up", self.name, why)
            self.has_given_up = True
            self._fleet.goes_down(self, why, guilty)
            self._fleet.does_not_stay_up(self)
            return
        LOGGER.error("%s went down: %s; starting it again in %g s", self.name, why, delay)
        self._fleet.goes_down(self, f"{why}; it is being started again, send the request later", guilty)
        self._house.later(delay, self._house.unless_stopping(self.start))
