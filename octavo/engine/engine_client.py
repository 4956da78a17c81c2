"""EngineClient: all that a server's routes know of an engine.

    routes ──▶ EngineClient ◀── AsyncLLM          the engine on a thread of this process
                            ◀── ProcessClient     the engine in a process of its own

Both give the same tokens for the same seeds, so routes are written and tested against either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from octavo.engine.core import EngineStats
from octavo.engine.input import Prompt
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What was loaded, as far as those who ask for tokens need to know.

    default_sampling_params: what the checkpoint's generation config asks for. card: the start-up card.
    """

    max_model_len: int
    vocab_size: int
    max_num_seqs: int
    max_logprobs: int
    default_sampling_params: SamplingParams
    card: list[tuple[str, str]]


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
    ) -> AsyncIterator[RequestOutput]:
        """The request's outputs as they come; the last one has finished=True. Leaving the loop, or being cancelled,
        aborts the request. cache_salt: share cached blocks only with requests of the same salt.

        Raises InvalidRequestError (the user's fault), EngineBusyError (too many wait; it says when to come again)
        and EngineDeadError (the engine is down, or went down).
        """
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
