"""The supervisor: parent of one engine process and of the front ends, and the only one who starts and ends them.

    octavo serve ─── supervisor ──┬── engine        scheduler, cache, model
                                  ├── front end 0   HTTP, text, tokens ┐ share one listening socket, and speak with
                                  └── front end 1   ...                ┘ the engine through a Unix socket

    engine ends        its requests fail, /health says 503; it is started anew, a few times, each after a longer wait
    engine hangs       nothing is heard of it for --engine-hang-timeout seconds; it is killed, and the same follows
    front end ends     its own requests end; it is started anew
    front end hangs    nothing is heard of it for --front-end-hang-timeout seconds; it is killed, and the same follows
    SIGTERM, Ctrl-C    no new requests; those that run have --shutdown-timeout seconds; a second signal ends all at once
    supervisor ends    even by kill -9: every child sees its pipe end, and exits

It holds no model, tokenizer or request, and does nothing but wait; so there is little in it that could go wrong.
"""

from __future__ import annotations

import heapq
import itertools
import math
import selectors
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from octavo import errors
from octavo.child import Child, Note
from octavo.config import AdmissionConfig, EngineConfig, ServerConfig
from octavo.errors import EngineDeadError, OctavoError
from octavo.observe.logging import LOGGER
from octavo.processes.engine_task import EngineTask, front_end_identity
from octavo.processes.front_end_task import FrontEndTask
from octavo.processes.listening import close_socket, open_socket, url_of
from octavo.processes.restarts import Restarts
from octavo.processes.run_directory import make_run_directory
from octavo.processes.signals import SIGNALS, hearing_signals
from octavo.processes.step_record import who_was_computed
from octavo.processes.suspects import Suspects
from octavo.processes.watchdog import Watchdog

#: seconds that a child may take to end once it has said so, or was told to
GRACE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """All that was asked of a server. app: "module:function" that makes the ASGI app of (client, settings)."""

    engine: EngineConfig
    admission: AdmissionConfig
    server: ServerConfig
    settings: Any
    model_name: str
    app: str = "octavo.server.app:create_app"


@dataclass(slots=True, eq=False)
class _FrontEnd:
    """One front end, through all the processes that it is. child: None between two of them."""

    index: int
    child: Child | None = None
    watchdog: Watchdog = field(default_factory=Watchdog)
    restarts: Restarts = field(default_factory=Restarts)
    has_ever_served: bool = False


class Supervisor:
    """Owner of the processes, the listening socket and the run directory."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = itertools.count()
        self._engine: Child | None = None
        self._address: str | None = None  # of an engine that serves
        self._num_engines = 0
        self._has_served = False
        self._has_listened = False
        self._engine_restarts = Restarts()
        self._step_record = ""  # the file in which the engine says whom it computes
        self._suspects = Suspects()
        self._died_at_work = False  # whether the engine that is ending computed something
        self._watchdog = Watchdog()
        self._hang: str | None = None  # why the engine that is ending was killed
        self._front_ends = [_FrontEnd(index) for index in range(options.server.api_server_count)]
        self._failure: Note | None = None
        self._is_stopping = False
        self._exit_code: int | None = None

    def run(self) -> int:
        """Serve until told to stop -> exit code. Raises what kept the server from starting."""
        self._listening = open_socket(self._options.server)
        self._run_directory = make_run_directory()
        try:
            with hearing_signals() as end:
                self._selector.register(end, selectors.EVENT_READ, partial(self._take_signals, end))
                self._start_engine()
                for front_end in self._front_ends:
                    self._start_front_end(front_end)
                while self._exit_code is None:
                    self._turn()
                return self._exit_code
        finally:
            self._end_everything()

    def _turn(self) -> None:
        """Wait for what happens next, and see to it."""
        now = time.monotonic()
        due = max(0.0, self._timers[0][0] - now) if self._timers else math.inf
        watchdogs = (self._watchdog, *(one.watchdog for one in self._front_ends))
        patience = min(due, *(watchdog.seconds_left(now) for watchdog in watchdogs))
        for key, _ in self._selector.select(None if math.isinf(patience) else patience):
            key.data()
        if self._watchdog.is_over(time.monotonic()):
            self._engine_hangs()
        for front_end in self._front_ends:
            if front_end.watchdog.is_over(time.monotonic()):
                self._front_end_hangs(front_end)
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def _later(self, seconds: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._counter), deed))

    # The engine

    def _start_engine(self) -> None:
        options = self._options
        self._num_engines += 1
        self._step_record = f"{self._run_directory}/step-{self._num_engines}"
        self._died_at_work = False
        task = EngineTask(
            config=options.engine,
            admission=options.admission,
            address=f"ipc://{self._run_directory}/engine-{self._num_engines}",
            step_record=self._step_record,
            num_deaths=self._suspects.num_deaths(time.monotonic()),
            model_name=options.model_name,
            logs_stats=not options.server.disable_log_stats,
            hang_timeout_s=options.server.engine_hang_timeout,
            run_directory=self._run_directory,
        )
        self._engine = Child("engine", "octavo.processes.engine_loop:main", task)
        self._watchdog = Watchdog()
        hear = partial(self._hear_engine, self._engine, task.address)
        self._selector.register(self._engine.channel, selectors.EVENT_READ, hear)

    def _hear_engine(self, engine: Child, address: str) -> None:
        for note in engine.channel.receive():
            if note.kind == "ready":
                self._engine_is_ready(address, note.card)
            if note.kind in ("ready", "alive"):
                self._watchdog.heard(time.monotonic(), note.seconds)
            elif note.kind == "cleared":
                self._suspects.clear(note.text)
            elif note.kind == "failed":
                self._failure = note
        if not engine.channel.is_open:
            self._selector.unregister(engine.channel)
            self._engine_is_gone(engine.reap(GRACE_S))

    def _engine_is_ready(self, address: str, card: list[tuple[str, str]]) -> None:
        self._address = address
        self._engine_restarts.serves(time.monotonic())
        if self._has_served:
            LOGGER.info("the engine is up again")
        else:
            _print_card(card)
        self._has_served = True
        self._tell_front_ends(Note("engine_up", text=address))

    def _engine_hangs(self) -> None:
        """It lives and says nothing. Its requests end now: a process may take a while to die in a driver."""
        assert self._engine is not None, "there is an engine as long as one is waited for"
        silence = f"nothing was heard of it for {self._watchdog.patience_s:g} s"
        LOGGER.error(
            "the engine hangs: %s; process %d is killed. If it only needs longer, raise --engine-hang-timeout",
            *(silence, self._engine.process.pid),
        )
        self._hang = f"it hung ({silence}) and was killed"
        self._watchdog.rest()
        self._address = None
        self._tell_front_ends(Note("engine_down", text=self._hang, fingerprints=self._find_guilty()))
        self._engine.kill()

    def _find_guilty(self) -> list[str]:
        """The requests that it is once too often now that an engine died at."""
        died_at = who_was_computed(self._step_record)
        self._died_at_work |= bool(died_at)
        guilty = self._suspects.accuse(died_at, time.monotonic())
        if guilty:
            LOGGER.error("%d of the requests in the engine's last step were in another engine's: refused", len(guilty))
        return guilty

    def _engine_is_gone(self, how: str) -> None:
        """It ended by itself, or was told to."""
        self._engine = self._address = None
        self._watchdog.rest()
        failure, self._failure = self._failure, None
        hang, self._hang = self._hang, None
        if self._is_stopping:
            self._tell_front_ends(Note("engine_down", text=f"its process ended with {how}"))
            self._finish_if_all_are_gone()
            return
        if not self._has_served:
            raise _error(failure, f"the engine's process ended with {how} before it could serve")
        why = hang or (failure.text if failure is not None else f"its process ended with {how}")
        guilty = self._find_guilty()
        delay = self._engine_restarts.next_delay(time.monotonic(), is_excused=self._died_at_work)
        if delay is None:
            LOGGER.error("the engine went down: %s; it does not stay up, so the server ends", why)
            self._begin_stop(0.0, exit_code=1)
            return
        LOGGER.error("the engine went down: %s; starting it again in %g s", why, delay)
        text = f"{why}; it is being started again, send the request later"
        self._tell_front_ends(Note("engine_down", text=text, fingerprints=guilty))
        self._later(delay, self._restart_engine)

    def _restart_engine(self) -> None:
        if not self._is_stopping:
            self._start_engine()

    def _stop_engine(self) -> None:
        engine = self._engine
        self._watchdog.rest()
        if engine is None:
            self._finish_if_all_are_gone()
        elif self._address is None:
            engine.kill()  # it loads, and listens to nobody
        else:
            engine.channel.send(Note("stop"))
            self._later(GRACE_S, engine.kill)

    # Front ends

    def _start_front_end(self, front_end: _FrontEnd) -> None:
        options, index = self._options, front_end.index
        num_starts = next(self._counter)
        task = FrontEndTask(
            index=index,
            # The first front end draws the seeds that an offline engine would; no two draw the same.
            seed=options.engine.model.seed + ((index if num_starts < len(self._front_ends) else num_starts) << 64),
            model=options.engine.model,
            server=options.server,
            app=options.app,
            settings=options.settings,
            listening_fd=self._listening.fileno(),
            run_directory=self._run_directory,
        )
        child = Child(f"front end {index}", "octavo.server.front_end:main", task, [self._listening.fileno()])
        front_end.child, front_end.watchdog = child, Watchdog()
        self._selector.register(child.channel, selectors.EVENT_READ, partial(self._hear_front_end, front_end, child))
        if self._address is not None:
            child.channel.send(Note("engine_up", text=self._address))

    def _hear_front_end(self, front_end: _FrontEnd, child: Child) -> None:
        for note in child.channel.receive():
            if note.kind == "ready":
                self._front_end_is_ready(front_end)
            elif note.kind == "alive":
                front_end.watchdog.heard(time.monotonic(), note.seconds)
            elif note.kind == "failed":
                self._failure = note
        if not child.channel.is_open:
            self._selector.unregister(child.channel)
            self._front_end_is_gone(front_end, child, child.reap(GRACE_S))

    def _front_end_is_ready(self, front_end: _FrontEnd) -> None:
        front_end.restarts.serves(time.monotonic())
        is_first_time, front_end.has_ever_served = not front_end.has_ever_served, True
        if is_first_time and all(one.has_ever_served for one in self._front_ends) and not self._is_stopping:
            self._has_listened = True
            LOGGER.info("listening on %s", url_of(self._listening, self._options.server))

    def _front_end_hangs(self, front_end: _FrontEnd) -> None:
        """It lives and says nothing."""
        child, watchdog = front_end.child, front_end.watchdog
        assert child is not None, "only a process that was heard of is missed"
        LOGGER.error(
            "front end %d hangs: nothing was heard of it for %g s; process %d is killed. If it only needs longer, "
            "raise --front-end-hang-timeout",
            *(front_end.index, watchdog.patience_s, child.process.pid),
        )
        watchdog.rest()
        child.kill()

    def _front_end_is_gone(self, front_end: _FrontEnd, child: Child, how: str) -> None:
        """Nobody waits for its requests any more."""
        index, restarts = front_end.index, front_end.restarts
        front_end.child = None
        front_end.watchdog.rest()
        if self._engine is not None and self._address is not None:
            identity = front_end_identity(index, child.process.pid)
            self._engine.channel.send(Note("front_end_gone", text=identity))
        if self._is_stopping:
            if not self._living_front_ends:
                self._stop_engine()
            return
        failure, self._failure = self._failure, None
        if not front_end.has_ever_served:
            raise _error(failure, f"front end {index} ended with {how} before it could serve")
        delay = restarts.next_delay(time.monotonic(), is_excused=restarts.has_served)
        if delay is None:
            LOGGER.error("front end %d ended with %s; it does not stay up, so the server ends", index, how)
            self._begin_stop(0.0, exit_code=1)
            return
        LOGGER.error("front end %d ended with %s; starting it again in %g s", index, how, delay)
        self._later(delay, partial(self._restart_front_end, front_end))

    def _restart_front_end(self, front_end: _FrontEnd) -> None:
        if not self._is_stopping:
            self._start_front_end(front_end)

    @property
    def _living_front_ends(self) -> list[Child]:
        return [one.child for one in self._front_ends if one.child is not None]

    def _tell_front_ends(self, note: Note) -> None:
        for child in self._living_front_ends:
            child.channel.send(note)

    # The end

    def _take_signals(self, end: socket.socket) -> None:
        for number in end.recv(64):
            if number not in SIGNALS:
                continue
            if not self._has_listened:
                self._exit_code = 128 + number  # there is nobody to be told, and nothing to be waited for
                return
            if self._is_stopping:
                LOGGER.info("a second signal: everything ends now")
                self._exit_code = 128 + number
                return
            seconds = self._options.server.shutdown_timeout
            LOGGER.info(
                "shutting down: running requests %s; a second signal ends everything at once",
                f"have {seconds} s" if seconds else "are ended",
            )
            self._begin_stop(seconds, exit_code=0)

    def _begin_stop(self, seconds: float, exit_code: int) -> None:
        self._is_stopping = True
        for front_end in self._front_ends:
            front_end.watchdog.rest()  # each has its time to end
        self._exit_code_then = exit_code
        self._tell_front_ends(Note("drain", seconds=seconds))
        for child in self._living_front_ends:
            self._later(seconds + GRACE_S, child.kill)
        if not self._living_front_ends:
            self._stop_engine()

    def _finish_if_all_are_gone(self) -> None:
        if self._engine is None and not self._living_front_ends:
            self._exit_code = self._exit_code_then

    def _end_everything(self) -> None:
        """Whatever happened, leave nothing behind."""
        left = [*self._living_front_ends, *([self._engine] if self._engine is not None else [])]
        for child in left:
            child.kill()
        for child in left:
            child.reap(GRACE_S)
        self._selector.close()
        close_socket(self._listening, self._options.server)
        shutil.rmtree(self._run_directory, ignore_errors=True)


def _error(failure: Note | None, otherwise: str) -> OctavoError:
    """What a child said of its end, as the error that it was there."""
    if failure is None:
        return EngineDeadError(otherwise)
    kind = getattr(errors, failure.error, OctavoError)
    return kind(failure.text) if issubclass(kind, OctavoError) else OctavoError(failure.text)


def _print_card(card: list[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in card)
    print(*(f"  {label:<{width}}  {text}" for label, text in card), sep="\n", file=sys.stderr, flush=True)
