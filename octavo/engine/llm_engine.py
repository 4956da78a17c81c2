"""LLMEngine: the step loop with text at both ends, and EngineClient: what a server's routes know of an engine.

prompt -> input.py -> Request -> core.py (schedule, execute, update) -> output.py -> RequestOutput

`LLM` and `AsyncLLM` run the loop. Both EngineClients give the same tokens for the same seeds:

    routes ──▶ EngineClient ◀── AsyncLLM          the engine on a thread of this process
                            ◀── ProcessClient     the engine in its own process
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from octavo.engine.beam_search import BeamSearchParams, checked_beam_params
from octavo.engine.calls import refuse_unknown
from octavo.engine.core_protocol import Core, EngineStats
from octavo.engine.input import InputProcessor, Prompt, check_unused
from octavo.engine.output import RequestText
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.lora_request import LoRARequest
from octavo.observe.event_log import EventLog
from octavo.observe.exposition import EngineRecords
from octavo.observe.recorder import FlightRecorder
from octavo.observe.tracing import RequestTracer
from octavo.outputs import RequestOutput
from octavo.pooling_params import PoolingParams
from octavo.request import ModelInfo, Request, SequenceId
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.scheduler.step import SequenceUpdate
from octavo.text.tokenizer import Tokenizer


class LLMEngine:
    """Owner of one running engine. Only `make_request` and `continuation` are thread-safe."""

    def __init__(
        self,
        core: Core,
        inputs: InputProcessor,
        tokenizer: Tokenizer | None,
        events: EventLog,
        clock: Callable[[], float],
        default_sampling_params: SamplingParams,
        card: list[tuple[str, str]],
        recorder: FlightRecorder | None,
        tracer: RequestTracer | None = None,
        measure: Callable[[], Mapping[str, int]] = dict,
        records: EngineRecords | None = None,
    ) -> None:
        """measure: tells the bytes of each part of the engine's memory. records: those of several engines; then there
        is no recorder here, and no event."""
        self._core: Core | None = core
        self._inputs = inputs
        self._outputs = OutputProcessor(tokenizer)
        self._clock = clock
        self._pending: list[RequestOutput] = []
        self._live: set[str] = set()
        self.tokenizer = tokenizer
        self.events = events
        self.limits = inputs.limits
        self.default_sampling_params = default_sampling_params
        self.card = card
        self.recorder = recorder
        self.tracer = tracer
        self.measure = measure
        self.records = records

    def make_request(
        self,
        request_id: str,
        prompt: Prompt,
        sampling_params: SamplingParams | PoolingParams,
        priority: int = 0,
        cache_salt: str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> Request:
        """Tokenise and check. Any thread may call it: it does not touch the engine's state."""
        given = (request_id, prompt, sampling_params, self._clock(), priority, cache_salt, lora_request)
        return self._inputs.process(*given)

    def continuation(self, given: str | Sequence[int]) -> list[int]:
        """Tokens to append to others, from a text or token ids. Any thread may call it."""
        return self._inputs.continuation(given)

    def add_request(self, request: Request, forks: RequestText | None = None) -> None:
        """Queue a request. forks: a snapshot whose tokens it begins with. Raises InvalidRequestError if it can never be
        served, or its id is in use."""
        core = self.core
        check_unused(request.request_id, self._live)
        text = None if forks is None else forks.fork(request)
        core.add_request(request)
        self._outputs.add(request, text)
        self._live.add(request.request_id)

    def snapshot(self, request_id: str) -> RequestText:
        """A running request as it is now, to fork from. Raises InvalidRequestError if it has ended."""
        return self._outputs.snapshot(request_id)

    def abort_request(self, request_id: str) -> None:
        """End a request now; the next step() returns its last output. An unknown id is taken for a finished request."""
        if request_id in self._live:
            self.core.abort(request_id)
            self._pending += self._outputs.abort(request_id, self._clock())

    @property
    def has_unfinished_requests(self) -> bool:
        return self._core is not None and (bool(self._pending) or self._core.has_unfinished)

    def step(self) -> list[RequestOutput]:
        """Run one step -> outputs of the requests that changed. Raises EngineDeadError if no other can run, which names
        the file with the last events."""
        core = self.core
        try:
            updates = core.step() if core.has_unfinished else []
        except Exception as fault:
            raise EngineDeadError(self.recorder.explain_fault(fault) if self.recorder else str(fault)) from fault
        done = self._outputs.process(updates, self._clock())
        for sequence_id, stop in done.stops:
            core.finish_sequence(sequence_id, stop)
        for request_id, reason in done.faults:
            core.fail_request(request_id, reason)
        outputs, self._pending = self._pending + done.outputs, []
        self._live -= {output.request_id for output in outputs if output.finished}
        return outputs

    @property
    def core(self) -> Core:
        """The engine without text, for a process that leaves text to others."""
        if self._core is None:
            raise EngineDeadError("this engine was closed; make a new one")
        return self._core

    def close(self) -> None:
        """Free memory and threads. Requests that still run end without a last output."""
        if self._core is not None:
            self._core.close()
            self._core = None
            if self.recorder is not None:
                self.recorder.close()
            if self.tracer is not None:
                self.tracer.close()


class RequestFault(NamedTuple):
    """This request's output could not be made, so it has ended."""

    request_id: str
    reason: str


class Processed(NamedTuple):
    """A step's outputs, and the ends that the scheduler must be told of: by stop strings and by faults."""

    outputs: list[RequestOutput]
    stops: list[tuple[SequenceId, str]]
    faults: list[RequestFault]


class OutputProcessor:
    """Owner of every live request's text. A fault while one request's output is made ends that request alone, with
    finish_reason "error"."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._requests: dict[str, RequestText] = {}

    def add(self, request: Request, text: RequestText | None = None) -> None:
        """text: what it begins with, if it forks from another."""
        self._requests[request.request_id] = RequestText(request, self._tokenizer) if text is None else text

    def snapshot(self, request_id: str) -> RequestText:
        if (text := self._requests.get(request_id)) is None:
            raise has_ended()
        return text.snapshot()

    def abort(self, request_id: str, now: float) -> list[RequestOutput]:
        """The last output of a request that the scheduler was told to end; none if it has had one."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return []
        request.abort()
        output = request.output(now)
        return [] if output is None else [output]

    def process(self, updates: Iterable[SequenceUpdate], now: float) -> Processed:
        touched: dict[str, RequestText] = {}
        done = Processed([], [], [])
        for update in updates:
            request = self._requests.get(update.sequence.request.request_id)
            if request is None:
                continue  # it ended earlier in this step
            stop = request.extend(update, now)
            if stop is not None:
                done.stops.append((update.sequence.sequence_id, stop))
            touched[request.request_id] = request
        for request_id, request in touched.items():
            output = request.output(now)
            if request.fault is not None:
                done.faults.append(RequestFault(request_id, request.fault))
            if request.finished:
                del self._requests[request_id]
            if output is not None:
                done.outputs.append(output)
        return done


def has_ended() -> InvalidRequestError:
    """Says why there is no snapshot."""
    return InvalidRequestError(
        "it does not run at this moment: it has not begun, or its last output waits to be read; try again"
    )


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """The arguments of `generate`. sampling_params None: the model's defaults. request_id None: one is made up.
    data_parallel_rank None: any engine."""

    prompt: Prompt
    sampling_params: SamplingParams | PoolingParams | None
    request_id: str | None
    priority: int
    cache_salt: str | None
    trace_headers: Mapping[str, str] | None
    data_parallel_rank: int | None = None
    forks: RequestText | None = None
    lora_request: LoRARequest | None = None


class EngineClient(Protocol):
    """An engine, as the coroutines of one event loop see it. num_front_ends: how many processes have such a client of
    the same engine, so that a call may reach any of them."""

    num_front_ends: int = 1

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | PoolingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        trace_headers: Mapping[str, str] | None = None,
        data_parallel_rank: int | None = None,
        forks: RequestText | None = None,
        lora_request: LoRARequest | None = None,
        **others: Any,
    ) -> AsyncIterator[RequestOutput]:
        """The request's outputs as they come; the last one has finished=True. Leaving the loop early, or being
        cancelled, aborts the request and frees its blocks. cache_salt: share cached blocks only with requests of the
        same salt. data_parallel_rank: of several engines, the one to use. forks: a `snapshot` of a request with the
        same prompt, whose tokens this one begins with. lora_request: the adapter to compute it with. others: vLLM's
        arguments, at values that ask for nothing.

        Raises InvalidRequestError (the user's fault), EngineBusyError (too many wait; it says when to try again) and
        EngineDeadError (the engine is down, or went down).
        """
        if others:
            refuse_unknown(EngineClient.generate, others)
        asked = (prompt, sampling_params, request_id, priority, cache_salt, trace_headers, data_parallel_rank, forks)
        return self._outputs(GenerateCall(*asked, lora_request))

    def beam_search(
        self, prompt: Prompt, request_id: str, params: BeamSearchParams, **others: Any
    ) -> AsyncIterator[RequestOutput]:
        """One output, once the search is over: the beams, best first. others: arguments of `generate`."""
        chosen = checked_beam_params(params).sampling_params(self.model_info.max_logprobs)
        return self.generate(prompt, chosen.clone(RequestOutputKind.FINAL_ONLY), request_id, **others)

    def _outputs(self, call: GenerateCall) -> AsyncIterator[RequestOutput]:
        """Implements `generate`; nothing is checked or begun before the first output is asked for."""

    async def snapshot(self, request_id: str) -> RequestText:
        """A running request as it is now. Raises InvalidRequestError if it has ended, or cannot be forked."""

    async def abort(self, request_id: str) -> None:
        """End a request; its last output has finish_reason "abort". An unknown id is taken for a finished request."""

    def get_tokenizer(self) -> Tokenizer | None: ...
    @property
    def model_info(self) -> ModelInfo: ...

    @property
    def is_alive(self) -> bool:
        """False while no engine can serve requests: it is down, restarting or shutting down."""

    async def adapters(self) -> list[LoRARequest]:
        """Those that are loaded."""
        return []

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Load an adapter. Raises InvalidRequestError if it does not fit, or another one has its name or number."""
        raise InvalidRequestError("there are no adapters: enable_lora is False; set it to True")

    async def remove_lora(self, lora_id: int) -> bool:
        """Unload an adapter by its lora_int_id; requests that have begun with it go on. False: there is none."""
        return False

    async def list_loras(self) -> set[int]:
        """The lora_int_id of each adapter that is loaded."""
        return {one.lora_int_id for one in await self.adapters()}

    async def stats(self) -> EngineStats: ...

    async def metrics(self) -> bytes:
        """The engine's metrics, as Prometheus reads them."""

    async def memory_map(self, engine: int = 0) -> bytes:
        """What each KV block holds now, as JSON (cache/memory_now.py)."""

    async def events(self, engine: int = 0) -> bytes:
        """The last events of one of the engines, as a log (flight_log.py), without token ids. Raises
        InvalidRequestError: there is no such engine."""
