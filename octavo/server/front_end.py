"""A front end's process: HTTP, text and tokens. It imports and opens its tokenizer while the engine loads.

supervisor ── notes ──▶ FrontEnd ── starts, drains, ends ──▶ uvicorn ── app ──▶ ProcessClient ◀── ZMQ ──▶ engine
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, cast

import uvicorn
import uvloop

from octavo.channel import Channel, Note
from octavo.child import begin, loading, telling_failures
from octavo.models.located import tokenizer_source
from octavo.observe.logging import LOGGER, log_to_stderr
from octavo.processes.heartbeat import beat
from octavo.processes.household import FrontEndTask
from octavo.processes.process_client import ProcessClient
from octavo.server.bounded_http import BoundedHttp
from octavo.server.connections import Connections
from octavo.text.template_process import template_processes
from octavo.text.tokenizer import Tokenizer, open_tokenizer

#: seconds for responses to be written once their requests have ended
FLUSH_S = 3.0
MAX_DESCRIPTORS = 65535
_DRAIN_LOOK_S = 0.02


def main() -> None:
    """The process. It reports `ready`, or `failed` and why."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # each text on its caller's thread, so none waits
    sys.setswitchinterval(0.001)  # how soon a thread with a large answer yields to the event loop
    task, channel = begin()
    log_to_stderr(f"front end {task.index}")
    _raise_descriptor_limit()
    logging.getLogger("uvicorn").handlers = LOGGER.handlers
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with telling_failures(channel):
        with loading():
            module, function = task.app.split(":")
            make_app = getattr(import_module(module), function)
            tokenizer = open_tokenizer(task.model, partial(tokenizer_source, task.model))
            if tokenizer is not None and tokenizer.chat_templates:
                template_processes().warm()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(FrontEnd(task, channel, tokenizer, make_app).run())


class FrontEnd:
    """Owner of the HTTP server and of its app's engine client."""

    def __init__(
        self, task: FrontEndTask, channel: Channel, tokenizer: Tokenizer | None, make_app: Callable[..., Any]
    ) -> None:
        self._task = task
        self._channel = channel
        self._client = ProcessClient(
            *(tokenizer, task.index, task.seed),
            logs_requests=task.server.enable_log_requests,
            num_front_ends=task.server.api_server_count,
            num_engines=task.num_engines,
            num_prefill=task.num_prefill,
            routing=task.routing,
        )
        self._make_app = make_app
        self._stop = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Runs until the supervisor stops it."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel.fileno(), self._obey)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            if await _first(self._client.welcomed(), stop):
                await self._serve(stop)
        finally:
            loop.remove_reader(self._channel.fileno())
            self._client.close()

    async def _serve(self, stop: asyncio.Future[Any]) -> None:
        connections = Connections(self._task.server, _max_num_idle(self._task.server.max_idle_connections))
        server = _Server(self._uvicorn_config(connections))
        sweeping = asyncio.ensure_future(connections.sweep())
        with socket.socket(fileno=self._task.listening_fd) as listening:
            serving = asyncio.ensure_future(server.serve(sockets=[listening]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.001)
            if server.started:
                self._channel.send(Note("ready"))
                beating = asyncio.ensure_future(beat(self._channel, self._task.server.front_end_hang_timeout))
                await asyncio.wait((stop, serving), return_when=asyncio.FIRST_COMPLETED)
                beating.cancel()
            server.should_exit = True
            await serving
            sweeping.cancel()

    def _uvicorn_config(self, connections: Connections) -> uvicorn.Config:
        server = self._task.server
        return uvicorn.Config(
            self._make_app(self._client, self._task.settings),
            http=cast(type[asyncio.Protocol], partial(BoundedHttp, connections)),  # uvicorn only calls it
            ws="none",
            timeout_keep_alive=server.timeout_keep_alive,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(FLUSH_S),
            ssl_keyfile=server.ssl_keyfile,
            ssl_certfile=server.ssl_certfile,
            ssl_ca_certs=server.ssl_ca_certs,
            ssl_cert_reqs=ssl.CERT_NONE if server.ssl_ca_certs is None else ssl.CERT_REQUIRED,
        )

    def _obey(self) -> None:
        for note in self._channel.receive():
            match note.kind:
                case "engine_up":
                    self._client.connect(note.text, note.engine)
                case "engine_down":
                    self._client.disconnect(note.text, frozenset(note.fingerprints), note.engine)
                case "drain":
                    self._draining = asyncio.ensure_future(self._drain(note.seconds))
                case "stop":
                    self._stop.set()
        if not self._channel.is_open:
            self._stop.set()

    async def _drain(self, seconds: float) -> None:
        """Refuse new requests; running ones may finish in this time, then they are ended."""
        self._client.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._client.num_streams:
                    await asyncio.sleep(_DRAIN_LOOK_S)
        if num_left := self._client.num_streams:
            LOGGER.info("ends %d running requests", num_left)
        self._client.abort_all()
        await asyncio.sleep(_DRAIN_LOOK_S)  # their readers take the last outputs
        self._stop.set()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: the supervisor has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _first(wanted: Any, stop: asyncio.Future[Any]) -> bool:
    """Whether `wanted` came before the stop."""
    waiting = asyncio.ensure_future(wanted)
    await asyncio.wait((waiting, stop), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return not stop.done()


def _raise_descriptor_limit() -> None:
    """Each connection is a descriptor, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(MAX_DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _max_num_idle(wanted: int) -> int:
    """Half of the descriptors stay free for connections whose requests are being answered."""
    return min(wanted, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
