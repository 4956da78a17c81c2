"""LLMEngine: the step loop with text on both ends. `LLM` and `AsyncLLM` are two ways to turn it.

prompt -> input.py -> Request -> core.py (schedule, execute, update) -> output.py -> RequestOutput
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from octavo.engine.core import EngineCore, EngineStats
from octavo.engine.engine_client import ModelInfo
from octavo.engine.input import InputProcessor, Prompt, check_unused
from octavo.engine.output import OutputProcessor
from octavo.errors import EngineDeadError
from octavo.observe.events import EventLog
from octavo.observe.tracing import RequestTracer
from octavo.outputs import RequestOutput
from octavo.request import Request, RequestLimits
from octavo.sampling_params import SamplingParams
from octavo.text.tokenizer import Tokenizer


class LLMEngine:
    """Owner of one running engine. Not thread-safe, but for `make_request`."""

    def __init__(
        self,
        core: EngineCore,
        inputs: InputProcessor,
        tokenizer: Tokenizer | None,
        events: EventLog,
        clock: Callable[[], float],
        default_sampling_params: SamplingParams,
        card: list[tuple[str, str]],
        tracer: RequestTracer | None = None,
    ) -> None:
        self._core: EngineCore | None = core
        self._inputs = inputs
        self._outputs = OutputProcessor(tokenizer)
        self._clock = clock
        self._pending: list[RequestOutput] = []
        self._live: set[str] = set()
        self.tokenizer = tokenizer
        self.events = events
        self.default_sampling_params = default_sampling_params
        self.card = card
        self.tracer = tracer

    def make_request(
        self,
        request_id: str,
        prompt: Prompt,
        sampling_params: SamplingParams,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> Request:
        """Tokenise and check. Touches no engine state, so any thread may call it."""
        return self._inputs.process(request_id, prompt, sampling_params, self._clock(), priority, cache_salt)

    def add_request(self, request: Request) -> None:
        """Queue a request. Raises InvalidRequestError if it can never be served, or its id is in use."""
        core = self._alive()
        check_unused(request.request_id, self._live)
        core.add_request(request)
        self._outputs.add(request)
        self._live.add(request.request_id)

    def abort_request(self, request_id: str) -> None:
        """End a request now; the next step() returns its last output. Unknown ids are finished ones."""
        if request_id in self._live:
            self._alive().abort(request_id)
            self._pending += self._outputs.abort(request_id, self._clock())

    @property
    def has_unfinished_requests(self) -> bool:
        return self._core is not None and (bool(self._pending) or self._core.has_unfinished)

    def step(self) -> list[RequestOutput]:
        """One turn of the engine -> outputs of the requests that changed."""
        core = self._alive()
        updates = core.step() if core.has_unfinished else []
        done = self._outputs.process(updates, self._clock())
        for found in done.stops:
            core.finish_sequence(found.sequence_id, found.stop)
        for failed in done.faults:
            core.fail_request(failed.request_id, failed.reason)
        outputs, self._pending = self._pending + done.outputs, []
        self._live -= {output.request_id for output in outputs if output.finished}
        return outputs

    @property
    def core(self) -> EngineCore:
        """The engine without text, for a process that leaves text to others."""
        return self._alive()

    @property
    def limits(self) -> RequestLimits:
        return self._inputs.limits

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo(**asdict(self.limits), default_sampling_params=self.default_sampling_params, card=self.card)

    def stats(self) -> EngineStats:
        return self._alive().stats()

    def close(self) -> None:
        """Give back memory and threads. Requests still running end without a last output."""
        if self._core is not None:
            self._core.close()
            self._core = None
            if self.tracer is not None:
                self.tracer.close()

    def _alive(self) -> EngineCore:
        if self._core is None:
            raise EngineDeadError("this engine was closed; make a new one")
        return self._core
