"""Keeps an engine running: starts its process, watches it, and restarts it when it ends or hangs.

ends     its requests fail and /health returns 503; it is restarted a few times, each time after a longer wait
hangs    it sends nothing for --engine-hang-timeout seconds; it is killed, then as above
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from octavo.child import Child, Note, as_error
from octavo.config import AdmissionConfig, EngineConfig, ServerConfig
from octavo.observe.logging import LOGGER
from octavo.processes.heartbeat import Watchdog
from octavo.processes.household import GRACE_S, EngineTask, Household, Restarts, front_end_identity
from octavo.processes.probation import Suspects, who_was_computed


class EngineKeeper:
    """Owner of the engine's process. tell: sends a note to all front ends. give_up: ends the server, since the engine
    does not stay up. was_told_to_end: called when it has exited as it was told."""

    def __init__(
        self,
        house: Household,
        config: EngineConfig,
        admission: AdmissionConfig,
        server: ServerConfig,
        model_name: str,
        *,
        tell: Callable[[Note], None],
        give_up: Callable[[], None],
        was_told_to_end: Callable[[], None],
    ) -> None:
        self._house = house
        self._tell, self._give_up, self._was_told_to_end = tell, give_up, was_told_to_end
        self._task = partial(
            EngineTask,
            config=config,
            admission=admission,
            model_name=model_name,
            logs_stats=not server.disable_log_stats,
            hang_timeout_s=server.engine_hang_timeout,
            run_directory=house.run_directory,
        )
        self.child: Child | None = None
        self.address: str | None = None  # None unless the engine serves
        self.watchdog = Watchdog()
        self._num_starts = 0
        self._has_served = False
        self._restarts = Restarts()
        self._step_record = ""  # the file in which the engine records its steps' requests
        self._suspects = Suspects()
        self._died_at_work = False  # whether the engine died while it computed requests
        self._hang: str | None = None  # why the engine was killed, if it was
        self._failure: Note | None = None

    def start(self) -> None:
        self._num_starts += 1
        self._step_record = f"{self._house.run_directory}/step-{self._num_starts}"
        self._died_at_work = False
        task = self._task(
            address=f"ipc://{self._house.run_directory}/engine-{self._num_starts}",
            step_record=self._step_record,
            num_deaths=self._suspects.num_deaths(time.monotonic()),
        )
        self.child = Child("engine", "octavo.processes.engine_loop:main", task)
        self.watchdog = Watchdog()
        self._house.listen(self.child.channel, partial(self._hear, self.child, task.address))

    def end_if_it_hangs(self) -> None:
        """Kill an engine that hangs. Its requests end now: a process may take long to die in a driver."""
        if not self.watchdog.is_over(time.monotonic()):
            return
        assert self.child is not None, "a watchdog runs only while there is an engine"
        silence = f"nothing was heard of it for {self.watchdog.patience_s:g} s"
        LOGGER.error(
            "the engine hangs: %s; process %d is killed. If it only needs longer, raise --engine-hang-timeout",
            *(silence, self.child.process.pid),
        )
        self._hang = f"it hung ({silence}) and was killed"
        self.watchdog.rest()
        self.address = None
        self._tell(Note("engine_down", text=self._hang, fingerprints=self._find_guilty()))
        self.child.kill()

    def front_end_gone(self, index: int, process_id: int) -> None:
        """Have the engine abort the requests of a front end that ended."""
        if self.child is not None and self.address is not None:
            self.child.channel.send(Note("front_end_gone", text=front_end_identity(index, process_id)))

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
                self._suspects.clear(note.text)
            elif note.kind == "failed":
                self._failure = note
        if not engine.channel.is_open:
            self._house.leave(engine.channel)
            self._is_gone(engine.reap(GRACE_S))

    def _is_ready(self, address: str, card: list[tuple[str, str]]) -> None:
        self.address = address
        self._restarts.serves(time.monotonic())
        if self._has_served:
            LOGGER.info("the engine is up again")
        else:
            width = max(len(label) for label, _ in card)
            print(*(f"  {label:<{width}}  {text}" for label, text in card), sep="\n", file=sys.stderr, flush=True)
        self._has_served = True
        self._tell(Note("engine_up", text=address))

    def _find_guilty(self) -> list[str]:
        """The fingerprints of requests that too many engines have died at, this one included."""
        died_at = who_was_computed(self._step_record)
        self._died_at_work |= bool(died_at)
        guilty = self._suspects.accuse(died_at, time.monotonic())
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
            self._tell(Note("engine_down", text=f"its process ended with {how}"))
            self._was_told_to_end()
            return
        if not self._has_served:
            raise as_error(failure, f"the engine's process ended with {how} before it could serve")
        why = hang or (failure.text if failure is not None else f"its process ended with {how}")
        guilty = self._find_guilty()
        delay = self._restarts.next_delay(time.monotonic(), is_excused=self._died_at_work)
        if delay is None:
            LOGGER.error("the engine went down: %s; it does not stay up, so the server ends", why)
            self._give_up()
            return
        LOGGER.error("the engine went down: %s; starting it again in %g s", why, delay)
        text = f"{why}; it is being started again, send the request later"
        self._tell(Note("engine_down", text=text, fingerprints=guilty))
        self._house.later(delay, self._house.unless_stopping(self.start))
