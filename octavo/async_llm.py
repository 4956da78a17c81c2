"""AsyncLLM: many coroutines, one engine, which runs on a separate thread. The thread sleeps while idle.

coroutine --commands--> engine thread: step() ... --outputs, by call_soon_threadsafe--> coroutine's queue
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from octavo.engine.assemble import build_engine
from octavo.engine.calls import check_rank, id_list, missing_attribute, not_to_be_copied
from octavo.engine.core import EngineCore
from octavo.engine.core_protocol import EngineStats
from octavo.engine.engine_args import EngineArgs
from octavo.engine.input import Prompt
from octavo.engine.llm_engine import EngineClient, GenerateCall, LLMEngine
from octavo.engine.options import engine_config
from octavo.engine.output import RequestText
from octavo.engine.pooled import numbers_of
from octavo.engine.watched_memory import WatchedMemory
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError
from octavo.lora_request import LoRARequest
from octavo.observe.metrics import EngineMetrics
from octavo.outputs import PoolingOutput, PoolingRequestOutput, RequestOutput
from octavo.pooling_params import PoolingParams
from octavo.request import ModelInfo, Request
from octavo.shown import shown
from octavo.text.tokenizer import Tokenizer

Item = RequestOutput | BaseException
Command = Callable[[LLMEngine], None]
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Listener:
    """Where to put one request's outputs."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Item]

    def put(self, item: Item) -> bool:
        """False if the reader's event loop is closed, so nobody will read it."""
        try:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)
        except RuntimeError:
            return False
        return True


class AsyncLLM(EngineClient):
    """An engine for asyncio programs. Takes the same options as LLM. Coroutines of several event loops may use it."""

    def __init__(self, /, model: str, **options: Any) -> None:
        config = engine_config(model=model, **options)
        self._num_engines = config.backend.data_parallel_size
        if self._num_engines > 1:
            from octavo.processes.parallel_engine import build_parallel_engine  # imports what one engine does not need

            self._engine = build_parallel_engine(config)
        else:
            self._engine = build_engine(config)
        engine = self._engine
        self._model_info = ModelInfo.of(engine.limits, engine.default_sampling_params, engine.card)
        self._metrics = self._engine.records or EngineMetrics(self._engine.events, model_name=str(model))
        self._memory = WatchedMemory(self._engine.core) if isinstance(self._engine.core, EngineCore) else None
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._listeners: dict[str, _Listener] = {}
        self._counter = itertools.count()
        self._fault: BaseException | None = None
        self._fault_lock = threading.Lock()  # so that no command is queued after the thread has taken its last one
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        self._thread.start()

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> AsyncLLM:
        """An AsyncLLM with these options; vLLM's way to make one."""
        return cls(**vars(engine_args))

    async def _outputs(self, call: GenerateCall) -> AsyncIterator[RequestOutput]:
        request_id = call.request_id if call.request_id is not None else f"async-{next(self._counter)}"
        params = call.sampling_params if call.sampling_params is not None else self._engine.default_sampling_params
        check_rank(call.data_parallel_rank, self._num_engines)
        asked = (request_id, call.prompt, params, call.priority, call.cache_salt, call.lora_request)
        request = await asyncio.to_thread(self._engine.make_request, *asked)
        request.data_parallel_rank = call.data_parallel_rank
        request.trace_headers = None if call.trace_headers is None else dict(call.trace_headers)
        listener = _Listener(asyncio.get_running_loop(), asyncio.Queue())
        self._send(lambda engine: self._add(engine, request, listener, call))
        finished = False
        try:
            while not finished:
                item = await listener.queue.get()
                if isinstance(item, BaseException):
                    finished = True
                    raise item
                finished = item.finished
                yield item
        finally:
            if not finished:
                with contextlib.suppress(EngineDeadError):
                    self._send(lambda engine: self._abort(engine, request_id, listener))

    async def encode(
        self, prompt: Prompt, pooling_params: PoolingParams | None = None, request_id: str | None = None, **others: Any
    ) -> AsyncIterator[PoolingRequestOutput[PoolingOutput]]:
        """The numbers of a model that embeds or classifies, as one output. others: arguments of `generate`. Raises
        InvalidRequestError, also if the model generates, or if the request failed."""
        if pooling_params is not None and not isinstance(pooling_params, PoolingParams):
            raise InvalidRequestError(
                f"pooling_params is {shown(pooling_params)}, allowed are a PoolingParams and None"
            )
        form, params = self._engine.limits.pooled, pooling_params or PoolingParams()
        params = params if form is None else params.checked_for(form)
        async for output in self.generate(prompt, params, request_id, **others):
            assert form is not None, "other models refuse such params"
            numbers = PoolingOutput(numbers_of(output, params, form))
            yield PoolingRequestOutput(output.request_id, numbers, output.prompt_token_ids, output.num_cached_tokens)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End a request, or several; the generator of each yields a last output with finish_reason "abort"."""
        for one in id_list(request_id):
            self._send(lambda engine, one=one: engine.abort_request(one))  # type: ignore[misc]

    async def snapshot(self, request_id: str) -> RequestText:
        return await self._ask(lambda engine: engine.snapshot(request_id))

    async def check_health(self) -> None:
        """Raises EngineDeadError if the engine has stopped."""
        await self._ask(lambda engine: None)

    async def reset_prefix_cache(self) -> bool:
        """Forget all cached blocks; running requests keep theirs."""
        return await self._ask(lambda engine: engine.core.reset_prefix_cache())

    def get_tokenizer(self) -> Tokenizer | None:
        return self._engine.tokenizer

    @property
    def model_info(self) -> ModelInfo:
        return self._model_info

    @property
    def is_alive(self) -> bool:
        return self._fault is None

    async def adapters(self) -> list[LoRARequest]:
        return await self._ask(lambda engine: engine.core.change_adapters())

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        await self._ask(lambda engine: engine.core.change_adapters(load=lora_request))
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        await self._ask(lambda engine: engine.core.change_adapters(unload=lora_id))
        return True

    async def stats(self) -> EngineStats:
        return await self._ask(lambda engine: engine.core.stats())

    async def metrics(self) -> bytes:
        return await self._ask(lambda engine: self._metrics.exposition())

    async def memory_map(self, engine: int = 0) -> bytes:
        self._check_engine(engine)
        if (memory := self._memory) is not None:
            return await self._ask(lambda engine: memory.answer())
        return await self._answer("memory map", engine)

    async def events(self, engine: int = 0) -> bytes:
        self._check_engine(engine)
        if self._engine.recorder is not None:
            return await asyncio.to_thread(self._engine.recorder.dump)
        return await self._answer("events", engine)

    def _check_engine(self, engine: int) -> None:
        if not 0 <= engine < self._num_engines:
            raise InvalidRequestError(f"there is no engine {engine}, allowed are 0 to {self._num_engines - 1}")

    async def _answer(self, about: str, engine: int) -> bytes:
        """One of several engines answers."""
        records = self._engine.records
        assert records is not None, "several engines have records"
        answers = await self._ask(lambda _: records.answers(about))
        if engine not in answers:
            raise EngineDeadError(f"engine {engine} is down; it is being started again, try later")
        return answers[engine]

    def shutdown(self) -> None:
        """Stop the thread and free everything. Running requests raise EngineDeadError."""
        if self._thread.is_alive():
            self._commands.put(None)
            self._thread.join()

    def __reduce__(self) -> Any:
        raise not_to_be_copied(self)

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name)

    async def _ask(self, question: Callable[[LLMEngine], Answer]) -> Answer:
        """Have the engine's thread answer between two steps."""
        answer: concurrent.futures.Future[Answer] = concurrent.futures.Future()

        def reply(engine: LLMEngine) -> None:
            try:
                answer.set_result(question(engine))
            except OctavoError as refusal:
                answer.set_exception(refusal)

        self._send(reply)
        return await asyncio.wrap_future(answer)

    def _send(self, command: Command) -> None:
        with self._fault_lock:
            if self._fault is None:
                self._commands.put(command)
                return
        raise EngineDeadError(_why_it_ended(self._fault)) from self._fault

    def _add(self, engine: LLMEngine, request: Request, listener: _Listener, call: GenerateCall) -> None:
        if call.trace_headers is not None and engine.tracer is not None:
            engine.tracer.link(request.request_id, call.trace_headers)
        try:
            engine.add_request(request, call.forks)
        except OctavoError as refusal:
            listener.put(refusal)
        else:
            self._listeners[request.request_id] = listener

    def _abort(self, engine: LLMEngine, request_id: str, listener: _Listener) -> None:
        """Abort for a reader that left, but not a later request with the same id."""
        if self._listeners.get(request_id) is listener:
            del self._listeners[request_id]
            engine.abort_request(request_id)

    def _run(self) -> None:
        """The engine thread: run commands, step while there is work, else sleep on the queue."""
        try:
            while self._obey():
                for output in self._engine.step():
                    self._deliver(output)
            self._end(EngineDeadError("the engine stopped: it was shut down"))
        except BaseException as fault:
            self._end(fault)

    def _end(self, fault: BaseException) -> None:
        """Close the engine and tell all who wait, also those whose requests are still queued."""
        with self._fault_lock:
            self._fault = fault
        self._engine.close()
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                with contextlib.suppress(EngineDeadError):
                    command(self._engine)  # a closed engine refuses, which `_add` passes on
        for listener in self._listeners.values():
            listener.put(EngineDeadError(_why_it_ended(fault)))

    def _obey(self) -> bool:
        """Run every waiting command; block for one if there is nothing else to do. False: shut down."""
        while True:
            try:
                command = self._commands.get(block=not self._engine.has_unfinished_requests)
            except queue.Empty:
                return True
            if command is None:
                return False
            command(self._engine)

    def _deliver(self, output: RequestOutput) -> None:
        listener = self._listeners.get(output.request_id)
        if listener is None:
            return
        is_read = listener.put(output)
        if output.finished or not is_read:
            del self._listeners[output.request_id]
        if not is_read:
            self._engine.abort_request(output.request_id)


def _why_it_ended(fault: BaseException) -> str:
    return str(fault) if isinstance(fault, EngineDeadError) else f"the engine stopped: {fault!r}"
