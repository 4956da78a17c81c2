"""RemoteEngine: one engine as a front end sees it: its messages, and the streams of the requests sent to it.

    open() ──AddRequest──▶ engine                          one message per step for all streams of a front end
      stream ◀── tokens to text ◀── StepNews

Tokens become text as soon as they come, since the engine must know of a stop string in it. An output is made only when
its reader asks for it, so a slow reader gets the tokens of several steps in one DELTA output.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import msgspec
import zmq

from octavo.engine.output import RequestText
from octavo.errors import EngineBusyError, EngineDeadError, InvalidRequestError
from octavo.lora_request import LoRARequest
from octavo.observe.logging import LOGGER
from octavo.processes import transport
from octavo.processes.engine_link import ClientStream, EngineLink
from octavo.processes.probation import refusal
from octavo.processes.router import Piece, Ticket
from octavo.request import Request
from octavo.scheduler.step import SequenceUpdate
from octavo.text.tokenizer import Tokenizer


class EngineListener(Protocol):
    """Who is told what an engine sends beside news of its streams."""

    def welcomed_by(self, engine: RemoteEngine, welcome: transport.Welcome) -> None: ...
    def loaded(self, engine: RemoteEngine, load: transport.Load) -> None: ...
    def started(self, ticket: Ticket) -> None:
        """The prompt of a routed request is computed."""

    def ended(self, stream: ClientStream) -> None:
        """A stream gets no more news, or is read no more."""


class RemoteEngine:
    """Owner of the streams. All calls must come from one event loop. name: the engine, in error messages."""

    def __init__(
        self,
        index: int,
        name: str,
        link: tuple[zmq.Context[zmq.Socket[bytes]], str],
        numbers: Iterator[int],
        listener: EngineListener,
    ) -> None:
        """link: the context of the socket, and this front end's identity. numbers: for keys, shared with other
        engines."""
        self.index = index
        self._name = name
        self._link = EngineLink(*link, self._take)
        self._numbers = numbers
        self._listener = listener
        self.send = self._link.send
        self.streams: dict[int, ClientStream] = {}
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._why_down = "it is starting"
        self.is_up = False

    def connect(self, address: str) -> None:
        """Connect to an engine that listens there."""
        self.disconnect("it is starting")
        self._link.connect(address)

    def disconnect(self, why: str, guilty: frozenset[str] = frozenset()) -> None:
        """The engine is gone: fail its requests. guilty: fingerprints of requests that too many engines died at."""
        self._why_down = why
        self.is_up = False
        self._link.disconnect()
        for stream in list(self.streams.values()):
            self.end(stream)
            is_guilty = bool(guilty) and transport.fingerprint_of(stream.request) in guilty
            stream.fail(refusal() if is_guilty else self.death())
        for answer in self._answers.values():  # which `_answer_to` then forgets
            if not answer.done():
                answer.set_exception(self.death())

    def death(self) -> EngineDeadError:
        return EngineDeadError(f"{self._name} is down: {self._why_down}")

    def open(
        self,
        request: Request,
        tokenizer: Tokenizer | None,
        trace_headers: dict[str, str] | None,
        ticket: Ticket | None = None,
        pieces: Sequence[Piece] = (),
        forks: RequestText | None = None,
    ) -> ClientStream:
        """Send a request. pieces: for the routers of other front ends. forks: what it begins with."""
        stream = ClientStream(next(self._numbers), request, tokenizer, self.index, ticket, forks)
        self.streams[stream.key] = stream
        self.send(
            transport.pack_request(stream.key, request, trace_headers, 0 if ticket is None else ticket.work, pieces)
        )
        return stream

    def end(self, stream: ClientStream) -> None:
        """Forget a stream that gets no more news, or is read no more."""
        del self.streams[stream.key]
        self._listener.ended(stream)

    def leave(self, stream: ClientStream) -> None:
        """Its reader has left."""
        if stream.key in self.streams:
            self.end(stream)
            self.send(transport.Abort(stream.key))

    def abort(self, stream: ClientStream) -> None:
        """End a stream; its reader gets a last output."""
        self.send(transport.Abort(stream.key))
        self._aborted(stream)

    async def ask(self, about: str) -> bytes:
        """Raises EngineDeadError."""
        return await self._answer_to(lambda number: transport.Question(number, about))

    async def adapters(self, load: LoRARequest | None = None, unload: int | None = None) -> transport.AdaptersAre:
        """Raises EngineDeadError."""
        answer = await self._answer_to(lambda number: transport.Adapters(number, load, unload))
        return msgspec.msgpack.decode(answer, type=transport.AdaptersAre)

    async def _answer_to(self, question: Callable[[int], transport.Up]) -> bytes:
        if not self.is_up:
            raise self.death()
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.Future[bytes]()
        try:
            self.send(question(number))
            return await answer
        finally:
            self._answers.pop(number, None)

    # Messages from the engine

    def _take(self, message: transport.Down) -> None:
        match message:
            case transport.StepNews():
                self._take_news(message)
            case transport.Refusal():
                self._take_refusal(message)
            case transport.Reply(number, answer):
                if (waiting := self._answers.get(number)) is not None and not waiting.done():
                    waiting.set_result(answer)
            case transport.Welcome():
                self.is_up = True
                self._listener.welcomed_by(self, message)
            case transport.Load():
                self._listener.loaded(self, message)
            case transport.GivenUp(keys):
                self._take_given_up(keys)

    def _take_given_up(self, keys: list[int]) -> None:
        """The engine dropped requests because this process did not read for too long."""
        LOGGER.warning("did not read for a while: %s has given up %d requests", self._name, len(keys))
        fault = EngineDeadError(
            f"{self._name} ended this request, for the process that serves it was stopped or too busy to read its "
            "answer"
        )
        for key in keys:
            if (stream := self.streams.get(key)) is not None:
                self.end(stream)
                stream.fail(fault)
            elif (answer := self._answers.get(key)) is not None and not answer.done():
                answer.set_exception(fault)
        if not self.is_up:
            self.send(transport.Hello())

    def _take_news(self, news: transport.StepNews) -> None:
        for one in news.others:  # first: they announce sequences that the columns name
            if (stream := self.streams.get(one.key)) is not None:
                if stream.ticket is not None and stream.ticket.prompt_work:
                    self._listener.started(stream.ticket)
                self._grow(stream, stream.mirror(one), news.time)
        indices: Iterable[int] = news.indices or itertools.repeat(0, len(news.keys))
        for key, index, token_id in zip(news.keys, indices, news.token_ids, strict=True):
            if (stream := self.streams.get(key)) is not None:
                self._grow(stream, SequenceUpdate(stream.sequences[index], [token_id]), news.time)

    def _grow(self, stream: ClientStream, update: SequenceUpdate, now: float) -> None:
        """Add to a stream's text. A fault there ends only this stream."""
        stop = stream.text.extend(update, now)
        if stream.text.fault is not None:
            self.send(transport.Abort(stream.key))
        elif stop is not None:
            self.send(transport.FinishSequence(stream.key, update.sequence.index, stop))
        if stream.text.finished:
            self.end(stream)
        stream.wake(now)

    def _take_refusal(self, refusal: transport.Refusal) -> None:
        if (stream := self.streams.get(refusal.key)) is None:
            return  # its reader has left
        if refusal.why == "aborted":
            self._aborted(stream)
            return
        self.end(stream)
        busy = EngineBusyError(refusal.text, refusal.retry_after_s) if refusal.why == "busy" else None
        stream.fail(busy or InvalidRequestError(refusal.text))

    def _aborted(self, stream: ClientStream) -> None:
        self.end(stream)
        stream.text.abort()
        stream.wake(time.monotonic())
