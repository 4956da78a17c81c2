"""ProcessClient: a front end's side of an engine in another process.

    generate() ──AddRequest──▶ engine                          one message per step for all streams of a front end
        ▲                         │
        └── wake ── stream ◀── StepNews ── tokens to text

Tokens become text as soon as they come, since the engine must know of a stop string in it. An output is made only when
its reader asks for it, so a slow reader gets the tokens of several steps in one DELTA output.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sized
from dataclasses import asdict

import msgspec

from octavo.engine.core import EngineStats
from octavo.engine.input import InputProcessor, Prompt, check_unused
from octavo.engine.llm_engine import EngineClient, GenerateCall
from octavo.errors import EngineBusyError, EngineDeadError, InvalidRequestError
from octavo.observe.logging import LOGGER
from octavo.outputs import RequestOutput
from octavo.processes.engine_link import ClientStream, EngineLink
from octavo.processes.household import front_end_identity
from octavo.processes.probation import refusal
from octavo.processes.transport import (
    Abort,
    AbortById,
    Down,
    FinishSequence,
    GivenUp,
    Hello,
    Question,
    Refusal,
    Reply,
    StepNews,
    Welcome,
    fingerprint_of,
    pack_params,
    pack_request,
)
from octavo.request import ModelInfo, Request
from octavo.sampling_params import SamplingParams
from octavo.scheduler.step import SequenceUpdate
from octavo.text.tokenizer import Tokenizer

#: characters or tokens; longer prompts are checked and tokenised on a thread, so that other streams go on
MAX_INLINE_SIZE = 4096
#: characters of bad words, which are tokenised one by one; likewise
MAX_INLINE_BAD_WORDS = 256


class ProcessClient(EngineClient):
    """Owner of this front end's end of the socket and of its streams. All calls must come from one event loop."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        index: int,
        seed: int,
        *,
        logs_requests: bool = False,
        num_front_ends: int = 1,
    ) -> None:
        """index: the front end's number. seed: for the seeds of requests that have none. logs_requests: log a line per
        request, without its content."""
        self.num_front_ends = num_front_ends
        self.identity = front_end_identity(index, os.getpid())
        self._tokenizer = tokenizer
        self._seed = seed
        self._logs_requests = logs_requests
        self._link = EngineLink(self.identity, self._take)
        self._send = self._link.send
        self._inputs: InputProcessor | None = None
        self._info: ModelInfo | None = None
        self._streams: dict[int, ClientStream] = {}
        self._keys: dict[str, int] = {}
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count()
        self._why_down = "it is starting"
        self._welcomed = asyncio.Event()
        self._is_draining = False

    # EngineClient

    async def _outputs(self, call: GenerateCall) -> AsyncIterator[RequestOutput]:
        arrival_time = time.monotonic()
        inputs = self._check_open()
        name = call.request_id if call.request_id is not None else f"{self.identity}-{next(self._numbers)}"
        params = call.sampling_params if call.sampling_params is not None else self.model_info.default_sampling_params
        job = (name, call.prompt, params, arrival_time, call.priority, call.cache_salt)
        if _is_long(call.prompt) or sum(map(len, params.bad_words or ())) > MAX_INLINE_BAD_WORDS:
            request = await asyncio.to_thread(inputs.process, *job)
        else:
            request = inputs.process(*job)
        stream = self._open(request, None if call.trace_headers is None else dict(call.trace_headers))
        try:
            while (output := stream.take()) is None or not output.finished:
                if output is None:
                    await stream.wait()
                else:
                    yield output
            yield output
        finally:
            if stream.key in self._streams:
                self._end(stream)
                self._send(Abort(stream.key))

    async def abort(self, request_id: str) -> None:
        key = self._keys.get(request_id)
        if key is None:
            self._send(AbortById(request_id))
        else:
            self._send(Abort(key))
            self._abort(self._streams[key])

    def get_tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    @property
    def model_info(self) -> ModelInfo:
        if self._info is None:
            raise self._death()
        return self._info

    @property
    def is_alive(self) -> bool:
        return self._welcomed.is_set() and not self._is_draining

    async def stats(self) -> EngineStats:
        return msgspec.msgpack.decode(await self._ask("stats"), type=EngineStats)

    async def metrics(self) -> bytes:
        return await self._ask("metrics")

    # For the front end

    def connect(self, address: str) -> None:
        """Connect to an engine that listens there."""
        self.disconnect("it is starting")
        self._link.connect(address)

    def disconnect(self, why: str, guilty: frozenset[str] = frozenset()) -> None:
        """The engine is gone: fail its requests. guilty: fingerprints of requests that too many engines died at."""
        self._why_down = why
        self._welcomed.clear()
        self._link.disconnect()
        for stream in list(self._streams.values()):
            self._end(stream)
            is_guilty = bool(guilty) and fingerprint_of(stream.request) in guilty
            stream.fail(refusal() if is_guilty else self._death())
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(self._death())

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
            self._send(Abort(stream.key))
            self._abort(stream)

    def close(self) -> None:
        self.disconnect("this front end is ending")
        self._link.close()

    # Streams

    def _check_open(self) -> InputProcessor:
        if self._is_draining:
            raise EngineDeadError("the server is shutting down and takes no new requests")
        if self._inputs is None or not self._welcomed.is_set():
            raise self._death()
        return self._inputs

    def _death(self) -> EngineDeadError:
        return EngineDeadError(f"the engine is down: {self._why_down}")

    def _open(self, request: Request, trace_headers: dict[str, str] | None) -> ClientStream:
        self._check_open()  # the engine may have gone down meanwhile
        check_unused(request.request_id, self._keys)
        stream = ClientStream(next(self._numbers), request, self._tokenizer)
        self._streams[stream.key] = stream
        self._keys[request.request_id] = stream.key
        if self._logs_requests:
            asked = ", ".join(f"{name}={value!r}" for name, value in pack_params(request.sampling_params).items())
            LOGGER.info("request %s: %d tokens; %s", request.request_id, request.num_prompt_tokens, asked or "defaults")
        self._send(pack_request(stream.key, request, trace_headers))
        return stream

    def _end(self, stream: ClientStream) -> None:
        """Forget a stream that gets no more news, or is read no more."""
        del self._streams[stream.key]
        del self._keys[stream.request.request_id]

    def _abort(self, stream: ClientStream) -> None:
        self._end(stream)
        stream.text.abort()
        stream.wake(time.monotonic())

    async def _ask(self, about: str) -> bytes:
        if not self._welcomed.is_set():
            raise self._death()
        number = next(self._numbers)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            self._send(Question(number, about))
            return await answer
        finally:
            self._answers.pop(number, None)

    # Messages from the engine

    def _take(self, message: Down) -> None:
        match message:
            case StepNews():
                self._take_news(message)
            case Refusal():
                self._take_refusal(message)
            case Reply(number, answer):
                if (waiting := self._answers.get(number)) is not None and not waiting.done():
                    waiting.set_result(answer)
            case Welcome():
                self._take_welcome(message)
            case GivenUp(keys):
                self._take_given_up(keys)

    def _take_welcome(self, welcome: Welcome) -> None:
        if self._inputs is None or self._inputs.limits != welcome.limits:
            self._inputs = InputProcessor(self._tokenizer, welcome.limits, self._seed)
        params = SamplingParams(**welcome.default_sampling_params)
        self._info = ModelInfo(**asdict(welcome.limits), default_sampling_params=params, card=welcome.card)
        self._welcomed.set()

    def _take_given_up(self, keys: list[int]) -> None:
        """The engine dropped requests because this process did not read for too long."""
        LOGGER.warning("did not read for a while: the engine has given up %d requests", len(keys))
        fault = EngineDeadError(
            "the engine ended this request, for the process that serves it was stopped or too busy to read its answer"
        )
        for key in keys:
            if (stream := self._streams.get(key)) is not None:
                self._end(stream)
                stream.fail(fault)
            elif (answer := self._answers.get(key)) is not None and not answer.done():
                answer.set_exception(fault)
        if not self._welcomed.is_set():
            self._send(Hello())

    def _take_news(self, news: StepNews) -> None:
        streams = self._streams
        for one in news.others:  # first: they announce sequences that the columns name
            if (stream := streams.get(one.key)) is not None:
                self._grow(stream, stream.mirror(one), news.time)
        indices: Iterable[int] = news.indices or itertools.repeat(0, len(news.keys))
        for key, index, token_id in zip(news.keys, indices, news.token_ids, strict=True):
            if (stream := streams.get(key)) is not None:
                self._grow(stream, SequenceUpdate(stream.sequences[index], [token_id]), news.time)

    def _grow(self, stream: ClientStream, update: SequenceUpdate, now: float) -> None:
        """Add to a stream's text. A fault there ends only this stream."""
        stop = stream.text.extend(update, now)
        if stream.text.fault is not None:
            self._send(Abort(stream.key))
        elif stop is not None:
            self._send(FinishSequence(stream.key, update.sequence.index, stop))
        if stream.text.finished:
            self._end(stream)
        stream.wake(now)

    def _take_refusal(self, refusal: Refusal) -> None:
        stream = self._streams.get(refusal.key)
        if stream is None:
            return  # its reader has left
        if refusal.why == "aborted":
            self._abort(stream)
            return
        self._end(stream)
        if refusal.why == "busy":
            stream.fail(EngineBusyError(refusal.text, refusal.retry_after_s))
        else:
            stream.fail(InvalidRequestError(refusal.text))


def _is_long(prompt: Prompt) -> bool:
    content = prompt.get("prompt") or prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else prompt
    return isinstance(content, Sized) and len(content) > MAX_INLINE_SIZE
