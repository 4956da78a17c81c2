"""The outputs of a request, with vLLM's names and meanings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

from octavo.logprobs import FlatLogprobs, TokenLogprobs
from octavo.lora_request import LoRARequest

FinishReason = Literal["stop", "length", "repetition", "abort", "error"]


@dataclass(slots=True)
class CompletionOutput:
    """One sequence of a request.

    finish_reason: None while running; "stop" (end token, stop token or stop string: stop_reason says which,
    None meaning the model's end token), "length", "repetition" (as repetition_detection asks), "abort", or "error"
    (stop_reason says what went wrong).
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | FlatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    lora_request: LoRARequest | None = field(default=None, repr=False)

    def finished(self) -> bool:
        """A method, as in vLLM."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Times in seconds of the engine's monotonic clock; None until they happen."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0


@dataclass(slots=True, repr=False)
class RequestOutput:
    """One request's results, in the form chosen by `SamplingParams.output_kind`.

    prompt_logprobs: one entry per prompt token, the first None. num_cached_tokens: prompt tokens from the prefix
    cache. pooled: the model's numbers, float32, of a request for an embedding (engine/pooled.py).
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[TokenLogprobs | None] | FlatLogprobs | None = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None
    pooled: bytes | None = None
    lora_request: LoRARequest | None = None

    # vLLM's names for missing features
    encoder_prompt = None
    encoder_prompt_token_ids = None
    multi_modal_placeholders = None
    kv_transfer_params = None

    def __repr__(self) -> str:
        names = (
            *("request_id", "prompt", "prompt_token_ids", "encoder_prompt", "encoder_prompt_token_ids"),
            *("prompt_logprobs", "outputs", "finished", "metrics", "lora_request", "num_cached_tokens"),
        )
        return f"RequestOutput({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


Pooled = TypeVar("Pooled")


@dataclass(slots=True)
class PoolingRequestOutput(Generic[Pooled]):
    """The result of a request of a model that pools. prompt_token_ids: those of both texts of a pair.
    num_cached_tokens: prompt tokens from the prefix cache."""

    request_id: str
    outputs: Pooled
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


@dataclass(slots=True, eq=False)
class PoolingOutput:
    """What a model gives for a text: [size] float32, or [tokens, size] if each token was asked about."""

    data: NDArray[np.float32]


@dataclass(slots=True)
class EmbeddingOutput:
    """One text's embedding."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(slots=True)
class ClassificationOutput:
    """One text's classes: the probability of each, or what use_activation=False leaves."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass(slots=True)
class ScoringOutput:
    """How well two texts fit: the cosine of their embeddings, -1 to 1, or a cross-encoder's score."""

    score: float


@dataclass(slots=True)
class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    """The result of a request for an embedding."""


@dataclass(slots=True)
class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    """The result of a request for a text's classes."""


@dataclass(slots=True)
class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    """The result of comparing two texts."""
