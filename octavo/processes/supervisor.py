"""The supervisor: parent of the engines' processes and of the front ends, which it alone starts and ends.

    octavo serve ─── supervisor ──┬── engine        scheduler, cache, model; several with --data-parallel-size
                                  ├── front end 0   HTTP, text, tokens ┐ share one listening socket, and talk to each
                                  └── front end 1   ...                ┘ engine through a Unix socket

    engine             see engine_fleet.py and engine_keeper.py
    front end          see front_end_keeper.py
    SIGTERM, Ctrl-C    no new requests; running ones have --shutdown-timeout seconds; a second signal ends all at once
    supervisor ends    even by kill -9: every child sees the end of its pipe, and exits

It holds no model, tokenizer or request, and does nothing but wait, so little in it can go wrong.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from octavo.channel import Note
from octavo.child import Child
from octavo.config import EngineConfig
from octavo.observe.logging import LOGGER
from octavo.processes.engine_fleet import EngineFleet, print_card
from octavo.processes.engine_keeper import EngineKeeper
from octavo.processes.front_end_keeper import FrontEndKeeper
from octavo.processes.household import GRACE_S, SIGNALS, FrontEndTask, Household, hearing_signals
from octavo.processes.listening import close_socket, open_socket, url_of
from octavo.server_config import AdmissionConfig, ServerConfig, TransferConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """A server's options. app: "module:function", which makes the ASGI app from (client, settings)."""

    engine: EngineConfig
    admission: AdmissionConfig
    server: ServerConfig
    settings: Any
    model_name: str
    transfer: TransferConfig = field(default_factory=TransferConfig)
    app: str = "octavo.server.app:create_app"


class Supervisor:
    """Owner of the processes and the listening socket."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._has_listened = False
        self._exit_code: int | None = None

    def run(self) -> int:
        """Serve until told to stop -> exit code. Raises an error that kept the server from starting."""
        options = self._options
        self._listening = open_socket(options.server)
        self._house = house = Household()
        give_up = partial(self._begin_stop, 0.0, exit_code=1)
        self._engines = EngineFleet(
            house,
            options.engine,
            admission=options.admission,
            model_name=options.model_name,
            logs_stats=not options.server.disable_log_stats,
            hang_timeout_s=options.server.engine_hang_timeout,
            tell=self._tell_front_ends,
            give_up=give_up,
            was_told_to_end=self._finish_if_all_are_gone,
            first_ready=self._print_card,
            transfer=options.transfer,
        )
        self._front_ends = [
            FrontEndKeeper(
                *(house, index, self._engines, partial(self._front_end_task, index)),
                first_ready=self._front_end_is_ready,
                give_up=give_up,
                was_told_to_end=self._front_end_has_ended,
            )
            for index in range(options.server.api_server_count)
        ]
        try:
            with hearing_signals() as end:
                house.listen(end, partial(self._take_signals, end))
                for keeper in self._keepers:
                    keeper.start()
                while self._exit_code is None:
                    self._turn()
                return self._exit_code
        finally:
            self._end_everything()

    def _turn(self) -> None:
        """Wait for the next thing to happen, and handle it."""
        self._house.wait([keeper.watchdog for keeper in self._keepers])
        for keeper in self._keepers:
            keeper.end_if_it_hangs()
        self._house.run_timers()

    def _front_end_task(self, index: int, num_starts: int) -> FrontEndTask:
        options = self._options
        return FrontEndTask(
            index=index,
            # The first front end draws the same seeds as an offline engine; no two front ends draw the same.
            seed=options.engine.model.seed + ((index if num_starts < len(self._front_ends) else num_starts) << 64),
            model=options.engine.model,
            server=options.server,
            app=options.app,
            settings=options.settings,
            listening_fd=self._listening.fileno(),
            run_directory=self._house.run_directory,
            num_engines=self._engines.num_answering,
            num_prefill=len(self._engines.keepers) - self._engines.num_answering,
            routing=options.engine.backend.data_parallel_routing,
        )

    def _print_card(self, card: Sequence[tuple[str, str]]) -> None:
        num_engines = self._engines.num_answering
        print_card(card, num_engines, len(self._engines.keepers) - num_engines)

    def _front_end_is_ready(self) -> None:
        if all(one.has_ever_served for one in self._front_ends) and not self._house.is_stopping:
            self._has_listened = True
            LOGGER.info("listening on %s", url_of(self._listening, self._options.server))

    @property
    def _keepers(self) -> list[EngineKeeper | FrontEndKeeper]:
        return [*self._engines.keepers, *self._front_ends]

    @property
    def _living_front_ends(self) -> list[Child]:
        return [one.child for one in self._front_ends if one.child is not None]

    def _tell_front_ends(self, note: Note) -> None:
        for front_end in self._front_ends:
            front_end.tell(note)

    # The end

    def _take_signals(self, end: socket.socket) -> None:
        for number in end.recv(64):
            if number not in SIGNALS:
                continue
            if not self._has_listened:
                self._exit_code = 128 + number  # no client to tell, and nothing to wait for
                return
            if self._house.is_stopping:
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
        self._house.is_stopping = True
        for front_end in self._front_ends:
            front_end.watchdog.rest()  # each has its own time limit now
        self._exit_code_then = exit_code
        self._tell_front_ends(Note("drain", seconds=seconds))
        for child in self._living_front_ends:
            self._house.later(seconds + GRACE_S, child.kill)
        self._front_end_has_ended()

    def _front_end_has_ended(self) -> None:
        if not self._living_front_ends:
            self._engines.stop()

    def _finish_if_all_are_gone(self) -> None:
        if self._engines.are_gone and not self._living_front_ends:
            self._exit_code = self._exit_code_then

    def _end_everything(self) -> None:
        """Whatever happened, leave nothing behind."""
        left = [keeper.child for keeper in self._keepers if keeper.child is not None]
        for child in left:
            child.kill()
        for child in left:
            child.reap(GRACE_S)
        close_socket(self._listening, self._options.server)
        self._house.close()
