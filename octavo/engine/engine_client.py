"""EngineClient: all that a server's routes know of an engine.

    routes ──▶ EngineClient ◀── AsyncLLM          the engine on a thread of this process
                            ◀── ProcessClient     the engine in a process of its own

Both give the same tokens for the same seeds, so routes are written and tested against either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from octavo.engine.calls import refuse_unknown
from octavo.engine.core import EngineStats
from octavo.engine.input import Prompt
from octavo.outputs import RequestOutput
from octavo.request import RequestLimits
from octavo.sampling_params import SamplingParams
from octavo.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo(RequestLimits):
    """What was loaded, as far as those who ask for tokens need to know.

    default_sampling_params: what the checkpoint's generation config asks for. card: the start-up card.
    """

    default_sampling_params: SamplingParams
    card: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """What `generate` is called with. None: the model's default parameters, an id of the engine's making."""

    prompt: Prompt
    sampling_params: SamplingParams | None
    request_id: str | None
    priority: int
    cache_salt: str | None
    trace_headers: Mapping[str, str] | None


class EngineClient(Protocol):
    """An engine, as coroutines of one event loop see it."""

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        trace_headers: Mapping[str, str] | None = None,
        **others: Any,
    ) -> AsyncIterator[RequestOutput]:
        """The request's outputs as they come; the last one has finished=True. Leaving the loop early, or being
        cancelled, aborts the request and frees its blocks. cache_salt: share cached blocks only with requests of the
        same salt. others: vLLM's arguments, where they ask for nothing.

        Raises InvalidRequestError (the user's fault), EngineBusyError (too many wait; it says when to come again)
        and EngineDeadError (the engine is down, or went down).
        """
        if others:
            refuse_unknown("generate", others, [field.name for field in fields(GenerateCall)])
        return self._outputs(GenerateCall(prompt, sampling_params, request_id, priority, cache_salt, trace_headers))

    def _outputs(self, call: GenerateCall) -> AsyncIterator[RequestOutput]:
        """What `generate` returns; nothing is checked or begun before the first output is asked for."""
        ...

    async def abort(self, request_id: str) -> None:
        """End a request; its last output says finish_reason "abort". Unknown ids are ended ones."""
        ...

    def get_tokenizer(self) -> Tokenizer | None: ...

    @property
    def model_info(self) -> ModelInfo: ...

    @property
    def is_alive(self) -> bool:
        """False while there is no engine to serve requests: down, starting anew, or shutting down."""
        ...

    async def stats(self) -> EngineStats: ...

    async def metrics(self) -> bytes:
        """The engine's metrics, as Prometheus reads them."""
        ...
