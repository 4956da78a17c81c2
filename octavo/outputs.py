"""What a request gives back: vLLM's names and meanings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(slots=True)
class Logprob:
    """One token's log-probability under the raw logits. rank 1 is the most likely token."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]


@dataclass(slots=True)
class CompletionOutput:
    """One sequence of a request.

    finish_reason: None while running; "stop" (end token, stop token or stop string: stop_reason says which,
    None meaning the model's end token), "length", "abort", or "error" (stop_reason says what went wrong).
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    lora_request = None  # vLLM's name for what is not there

    def finished(self) -> bool:
        """A call, as in vLLM."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """When things happened, in seconds of the engine's monotonic clock; None until they do."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0


@dataclass(slots=True, repr=False)
class RequestOutput:
    """One request's results, in the shape that `SamplingParams.output_kind` asks for.

    prompt_logprobs: one entry a prompt token, the first None. num_cached_tokens: prompt tokens whose KV
    came from the prefix cache.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None

    # vLLM's names for what is not there
    lora_request = None
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
