"""The bodies of answers in OpenAI's and vLLM's shapes, of routes without a protocol file of their own.

Fields that this engine never fills are null here if they are null in vLLM's answers: clients look for them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.observe.lives import between
from octavo.outputs import RequestOutput


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """cached_tokens: prompt tokens whose keys and values came from the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, kw_only=True):
    """reasoning_tokens: those of the thoughts, without the marks around them."""

    reasoning_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """completion_tokens_details: of answers that are read for thoughts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


def usage(num_prompt: int, num_completion: int, num_cached: int, num_thoughts: int | None = None) -> Usage:
    """num_thoughts: tokens of thoughts; None: the answers are not read for them."""
    thoughts = UNSET if num_thoughts is None else CompletionTokensDetails(reasoning_tokens=num_thoughts)
    return Usage(
        completion_tokens_details=thoughts,
        prompt_tokens=num_prompt,
        completion_tokens=num_completion,
        total_tokens=num_prompt + num_completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached),
    )


class RequestTimes(msgspec.Struct, kw_only=True):
    """Times of one request. generation_time_ms: from its first token to its last; mean_itl_ms: between two tokens.
    tokens_per_second: over the time since its first step."""

    time_to_first_token_ms: float | None = None
    generation_time_ms: float | None = None
    queue_time_ms: float | None = None
    mean_itl_ms: float | None = None
    tokens_per_second: float | None = None
    speculative_decoding: None = None


def request_times(output: RequestOutput, num_tokens: int) -> RequestTimes:
    """The times of a finished request of one sequence with `num_tokens` tokens. What never happened is null."""
    times = output.metrics
    if times is None:
        return RequestTimes()
    generation_s = between(times.first_token_time, times.finished_time)
    inference_s = between(times.first_scheduled_time, times.finished_time)
    return RequestTimes(
        time_to_first_token_ms=_ms(between(times.arrival_time, times.first_token_time)),
        generation_time_ms=_ms(generation_s),
        queue_time_ms=_ms(between(times.arrival_time, times.first_scheduled_time)),
        mean_itl_ms=None if generation_s is None or num_tokens < 2 else _ms(generation_s / (num_tokens - 1)),
        tokens_per_second=num_tokens / inference_s if inference_s else None,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


class PromptLogprob(msgspec.Struct, kw_only=True):
    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """text_offset: where each token begins in the choice's text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    routed_experts: None = None


class CompletionResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    service_tier: None = None
    system_fingerprint: None = None
    usage: Usage
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    metrics: RequestTimes | None = None


class TopLogprob(msgspec.Struct, kw_only=True):
    """bytes: the token's text in UTF-8, which may be part of a character; joined, they are the answer's text."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob, kw_only=True):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    content: list[ChatTokenLogprob]
    refusal: None = None


class FunctionCalled(msgspec.Struct, kw_only=True):
    """arguments: JSON, as text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCalled


class ChatMessage(msgspec.Struct, kw_only=True):
    """content: null beside calls without a text. tool_calls are left out if there are none, as in vLLM and OpenAI's
    API. reasoning_content: the former name of reasoning, which many clients read."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    reasoning: str | None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | None = None
    routed_experts: None = None


class ChatCompletionResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: None = None
    system_fingerprint: None = None
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: None = None
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    metrics: RequestTimes | None = None


class TokenizeResponse(msgspec.Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeResponse(msgspec.Struct, kw_only=True):
    prompt: str


class ModelCard(msgspec.Struct, kw_only=True):
    """has_chat_template: whether the model answers conversations; otherwise it continues texts."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "octavo"
    root: str
    parent: str | None = None
    max_model_len: int
    has_chat_template: bool
    default_sampling_params: dict[str, Any]


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]
