"""OfflineEngines: the processes of an LLM with several engines, and their sockets.

Nothing here waits in the background: whoever uses the engines calls `poll`, which also looks after their processes.
"""

from __future__ import annotations

import os
import time

import zmq

from octavo.channel import Note
from octavo.config import EngineConfig
from octavo.errors import EngineDeadError
from octavo.processes.engine_fleet import EngineFleet
from octavo.processes.engine_keeper import EngineKeeper
from octavo.processes.engine_link import front_end_socket
from octavo.processes.household import GRACE_S, Household, front_end_identity
from octavo.processes.transport import Down, Hello, Up, Welcome, decode_down, encode
from octavo.server_config import AdmissionConfig, ServerConfig

#: seconds between looks at processes that start or end
_LOOK_S = 0.02


class OfflineEngines:
    """Owner of the processes and the sockets. Making one starts all engines, and raises the error of one that cannot
    start. One caller, one thread. up: the engines that serve. welcomes: each engine's first."""

    def __init__(self, config: EngineConfig) -> None:
        self.up: set[int] = set()
        self.welcomes: list[Welcome] = []
        self.has_given_up = False  # no engine stays up
        self._news: list[tuple[int, Down | Note]] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._identity = front_end_identity(0, os.getpid()).encode()
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._poller = zmq.Poller()
        self._house = Household()
        self._keepers: list[EngineKeeper] = []
        try:
            self._start(config)
        except BaseException:
            self.close()
            raise

    def poll(self, seconds: float) -> list[tuple[int, Down | Note]]:
        """What has come from each engine, and a note for each that went down, in order. Waits for it so many seconds
        at most. Raises EngineDeadError once no engine stays up."""
        self._look_after(0.0)
        if self.has_given_up:
            raise EngineDeadError("no engine stays up; the log says how each of them ended")
        ready = dict(self._poller.poll(0 if self._news else int(1000 * seconds)))
        for engine, socket in list(self._sockets.items()):
            if socket in ready:
                self._receive(engine, socket)
        news, self._news = self._news, []
        return news

    def send(self, engine: int, message: Up) -> None:
        """Never waits. To an engine that is down it does nothing."""
        if engine in self._sockets:
            self._sockets[engine].send(encode(message), zmq.NOBLOCK)

    def close(self) -> None:
        """End all processes."""
        self._house.is_stopping = True
        until = time.monotonic() + GRACE_S
        for keeper in self._keepers:
            keeper.stop()
        while any(keeper.child is not None for keeper in self._keepers) and time.monotonic() < until:
            self._look_after(_LOOK_S)
        for keeper in self._keepers:
            if keeper.child is not None:
                keeper.child.kill()
                keeper.child.reap(GRACE_S)
        for engine in list(self._sockets):
            self._disconnect(engine)
        self._context.term()
        self._house.close()

    def _start(self, config: EngineConfig) -> None:
        fleet = EngineFleet(
            self._house,
            config,
            admission=AdmissionConfig(),
            model_name=config.model.model,
            logs_stats=False,
            hang_timeout_s=ServerConfig().engine_hang_timeout,
            tell=self._hear,
            give_up=self._give_up,
            was_told_to_end=lambda: None,
            first_ready=lambda card: None,
            serves=False,
        )
        self._keepers = fleet.keepers
        for keeper in self._keepers:
            keeper.start()
        while len(self._sockets) < len(self._keepers):
            self._look_after(_LOOK_S)
        welcomes: dict[int, Welcome] = {}
        while len(welcomes) < len(self._keepers):
            for engine, message in self.poll(_LOOK_S):
                if isinstance(message, Welcome):
                    welcomes[engine] = message
        self.welcomes = [welcomes[engine] for engine in sorted(welcomes)]

    def _look_after(self, seconds: float) -> None:
        """Hear, restart and end processes; wait so long at most if there is nothing to do."""
        self._house.wait([keeper.watchdog for keeper in self._keepers], at_most=seconds)
        for keeper in self._keepers:
            keeper.end_if_it_hangs()
        self._house.run_timers()

    def _give_up(self) -> None:
        self.has_given_up = True

    def _hear(self, note: Note) -> None:
        """A keeper tells of its engine."""
        self._disconnect(note.engine)
        if note.kind == "engine_down":
            self._news.append((note.engine, note))
            return
        socket = self._sockets[note.engine] = front_end_socket(self._context, note.text, self._identity)
        self._poller.register(socket, zmq.POLLIN)
        self.send(note.engine, Hello())

    def _disconnect(self, engine: int) -> None:
        self.up.discard(engine)
        if (socket := self._sockets.pop(engine, None)) is not None:
            self._poller.unregister(socket)
            socket.close()

    def _receive(self, engine: int, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                message = decode_down(socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            if isinstance(message, Welcome):
                self.up.add(engine)
            self._news.append((engine, message))
