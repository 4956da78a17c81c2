"""ProcessClient: a front end's side of engines in other processes.

    generate() ── Request ── router.py ──┬──▶ RemoteEngine 0 ──▶ engine 0
                                         └──▶ RemoteEngine 1 ──▶ engine 1

A request goes to one engine and stays there. If an engine goes down, its requests fail, and new ones go to the others.
With one engine nothing is routed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
import zmq

from octavo.config import DataParallelRouting
from octavo.engine.calls import check_rank
from octavo.engine.core_protocol import EngineStats, total_stats
from octavo.engine.input import InputProcessor, check_unused
from octavo.engine.llm_engine import EngineClient, GenerateCall, has_ended
from octavo.engine.output import RequestText
from octavo.engine.pooled import PoolingInput
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.lora_request import LoRARequest
from octavo.observe.exposition import joined
from octavo.observe.logging import LOGGER
from octavo.outputs import RequestOutput
from octavo.processes.call_size import takes_long
from octavo.processes.engine_link import ClientStream
from octavo.processes.household import front_end_identity
from octavo.processes.remote_engine import RemoteEngine
from octavo.processes.router import Piece, Router, Ticket, prompt_pieces
from octavo.processes.transport import AbortById, Adapters, AdaptersAre, Load, Welcome, pack_params
from octavo.request import ModelInfo, Request, least_limits
from octavo.sampling_params import SamplingParams
from octavo.text.tokenizer import Tokenizer


class ProcessClient(EngineClient):
    """Owner of this front end's view of each engine, and of its router. All calls must come from one event loop."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        index: int,
        seed: int,
        *,
        logs_requests: bool = False,
        num_front_ends: int = 1,
        num_engines: int = 1,
        routing: DataParallelRouting = "prefix",
        num_prefill: int = 0,
    ) -> None:
        """index: the front end's number. seed: for the seeds of requests that have none. logs_requests: log a line per
        request, without its content. num_prefill: engines after the others, which get no requests from here."""
        self.num_front_ends = num_front_ends
        self.identity = front_end_identity(index, os.getpid())
        self._tokenizer = tokenizer
        self._seed = seed
        self._logs_requests = logs_requests
        self._numbers = itertools.count()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._num_answering, num_all = num_engines, num_engines + num_prefill
        names = ["the engine"] if num_all == 1 else [f"engine {number}" for number in range(num_all)]
        self.engines = [
            RemoteEngine(number, name, (self._context, self.identity), self._numbers, self)
            for number, name in enumerate(names)
        ]
        self._router = Router(num_engines, routing, index % num_engines) if num_engines > 1 else None
        self._inputs: InputProcessor | None = None
        self._info: ModelInfo | None = None
        self._streams: dict[str, ClientStream] = {}  # by request id
        self._welcomed = asyncio.Event()
        self._is_draining = False
        self._loaded: dict[int, LoRARequest] = {}  # adapters that were loaded from here, for engines that start again

    # EngineClient

    async def _outputs(self, call: GenerateCall) -> AsyncIterator[RequestOutput]:
        arrival_time = time.monotonic()
        self._check_open()
        check_rank(call.data_parallel_rank, self._num_answering)
        if takes_long(call.prompt, call.sampling_params):
            request, pieces = await asyncio.to_thread(self._make_request, call, arrival_time)
        else:
            request, pieces = self._make_request(call, arrival_time)
        stream = self._open(request, pieces, call)
        try:
            while (output := stream.take()) is None or not output.finished:
                if output is None:
                    await stream.wait()
                else:
                    yield output
            yield output
        finally:
            self.engines[stream.engine].leave(stream)

    async def abort(self, request_id: str) -> None:
        if (stream := self._streams.get(request_id)) is not None:
            self.engines[stream.engine].abort(stream)
            return
        for engine in self.engines:
            engine.send(AbortById(request_id))

    async def snapshot(self, request_id: str) -> RequestText:
        if (stream := self._streams.get(request_id)) is None:
            raise has_ended()
        made = stream.text.snapshot()
        made.engine = stream.engine
        return made

    def get_tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    @property
    def model_info(self) -> ModelInfo:
        if self._info is None:
            raise self.engines[0].death()
        return self._info

    @property
    def is_alive(self) -> bool:
        return self._welcomed.is_set() and not self._is_draining

    async def stats(self) -> EngineStats:
        """The sum over the engines that serve."""
        answers = await self._ask("stats")
        return total_stats([msgspec.msgpack.decode(one, type=EngineStats) for one in answers])

    async def metrics(self) -> bytes:
        """Those of the engines that serve; each has its own label."""
        return joined(await self._ask("metrics"))

    async def memory_map(self, engine: int = 0) -> bytes:
        return await self._engine_at(engine).ask("memory map")

    async def events(self, engine: int = 0) -> bytes:
        return await self._engine_at(engine).ask("events")

    async def adapters(self) -> list[LoRARequest]:
        """Those of any engine that serves."""
        return [*{one.lora_name: one for known in await self._each() for one in known.loaded}.values()]

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        await self._each(load=lora_request)
        self._loaded[lora_request.lora_int_id] = lora_request
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        self._loaded.pop(lora_id, None)
        await self._each(unload=lora_id)
        return True

    async def _each(self, **asked: Any) -> list[AdaptersAre]:
        """Of the engines that answer requests and are up. Raises InvalidRequestError if one refuses."""
        up = [engine for engine in self.engines[: self._num_answering] if engine.is_up] or self.engines[:1]
        answers = await asyncio.gather(*(engine.adapters(**asked) for engine in up))
        for answer in answers:
            if answer.refusal:
                raise InvalidRequestError(answer.refusal)
        return list(answers)

    def _engine_at(self, engine: int) -> RemoteEngine:
        if not 0 <= engine < len(self.engines):
            raise InvalidRequestError(f"there is no engine {engine}, allowed are 0 to {len(self.engines) - 1}")
        return self.engines[engine]

    # For the front end

    def connect(self, address: str, engine: int = 0) -> None:
        """Connect to an engine that listens there."""
        self.engines[engine].connect(address)
        self._notice_down(engine)

    def disconnect(self, why: str, guilty: frozenset[str] = frozenset(), engine: int = 0) -> None:
        """The engine is gone: fail its requests. guilty: fingerprints of requests that too many engines died at."""
        self.engines[engine].disconnect(why, guilty)
        self._notice_down(engine)

    async def welcomed(self) -> None:
        """Wait until there is an engine to serve requests."""
        await self._welcomed.wait()

    def drain(self) -> None:
        """Take no new requests; running ones go on."""
        self._is_draining = True

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def abort_all(self) -> None:
        for stream in list(self._streams.values()):
            self.engines[stream.engine].abort(stream)

    def close(self) -> None:
        for engine in range(len(self.engines)):
            self.disconnect("this front end is ending", engine=engine)
        self._context.term()

    # EngineListener

    def welcomed_by(self, engine: RemoteEngine, welcome: Welcome) -> None:
        if engine.index >= self._num_answering:
            return
        for lora_request in self._loaded.values():
            engine.send(Adapters(next(self._numbers), replace(lora_request, load_inplace=False)))
        limits = welcome.limits
        if self._inputs is None:
            takes = InputProcessor if limits.pooled is None else PoolingInput
            self._inputs = takes(self._tokenizer, limits, self._seed)
        elif self._router is not None:
            limits = least_limits(self._inputs.limits, limits)
        self._inputs.limits = limits
        params = SamplingParams(**welcome.default_sampling_params)
        self._info = ModelInfo.of(limits, params, welcome.card)
        if self._router is not None:
            self._router.goes_up(engine.index, welcome.num_cache_tokens)
        self._welcomed.set()

    def loaded(self, engine: RemoteEngine, load: Load) -> None:
        if self._router is None or engine.index >= self._num_answering:
            return
        self._router.others_work(engine.index, load.work)
        for pieces in load.prompts:
            self._router.sees(engine.index, pieces)

    def started(self, ticket: Ticket) -> None:
        assert self._router is not None, "only a router gives tickets"
        self._router.started(ticket)

    def ended(self, stream: ClientStream) -> None:
        del self._streams[stream.request.request_id]
        if stream.ticket is not None and self._router is not None:
            self._router.ended(stream.ticket, stream.text.num_output_tokens if stream.text.finished else None)

    # Streams

    def _check_open(self) -> InputProcessor:
        if self._is_draining:
            raise EngineDeadError("the server is shutting down and takes no new requests")
        if self._inputs is None or not self._welcomed.is_set():
            raise self._death()
        return self._inputs

    def _death(self) -> EngineDeadError:
        one = self.engines[0].death()
        return one if self._num_answering == 1 else EngineDeadError(f"all engines are down; {one}")

    def _make_request(self, call: GenerateCall, arrival_time: float) -> tuple[Request, list[Piece]]:
        """Any thread may call it."""
        inputs = self._check_open()
        name = call.request_id if call.request_id is not None else f"{self.identity}-{next(self._numbers)}"
        params = call.sampling_params if call.sampling_params is not None else self.model_info.default_sampling_params
        more = (call.priority, call.cache_salt, call.lora_request)
        request = inputs.process(name, call.prompt, params, arrival_time, *more)
        request.data_parallel_rank = call.data_parallel_rank if call.forks is None else call.forks.engine
        return request, prompt_pieces(request) if self._router is not None else []

    def _open(self, request: Request, pieces: list[Piece], call: GenerateCall) -> ClientStream:
        self._check_open()  # the engine may have gone down meanwhile
        check_unused(request.request_id, self._streams)
        engine, ticket = self.engines[0], None
        if self._router is not None:
            ticket = self._router.choose(pieces, request)
            if ticket is None:  # the rank that it names is down
                raise self.engines[request.data_parallel_rank or 0].death()
            engine = self.engines[ticket.engine]
        if self._logs_requests:
            self._log(request, engine.index)
        headers = None if call.trace_headers is None else dict(call.trace_headers)
        others = pieces if self.num_front_ends > 1 else []
        stream = engine.open(request, self._tokenizer, headers, ticket, others, call.forks)
        self._streams[request.request_id] = stream
        return stream

    def _log(self, request: Request, engine: int) -> None:
        asked = ", ".join(f"{name}={value!r}" for name, value in pack_params(request.sampling_params).items())
        place = "" if self._router is None else f", engine {engine}"
        LOGGER.info(
            "request %s: %d tokens%s; %s",
            *(request.request_id, request.num_prompt_tokens, place, asked or "defaults"),
        )

    def _notice_down(self, engine: int) -> None:
        if self._router is not None and engine < self._num_answering:
            self._router.goes_down(engine)
        if not any(one.is_up for one in self.engines[: self._num_answering]):
            self._welcomed.clear()

    async def _ask(self, about: str) -> list[bytes]:
        """The answers of the engines that serve, of one at least. Raises EngineDeadError."""
        asked = [engine.ask(about) for engine in self.engines if engine.is_up]
        if len(asked) < 2:
            return [await (asked[0] if asked else self.engines[0].ask(about))]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        if found := [one for one in answers if isinstance(one, bytes)]:
            return found
        raise self._death()
