"""What requests may say: one struct a route, one field a parameter. Their schema is the one at /openapi.json.

A field that is null or left out is the same: the model's default. Fields that others know and this engine has no
use for are in fields_not_here.py, so that they are accepted or refused by name and never ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec

Number = int | float
Content = str | list[dict[str, Any]]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """include_usage: a last chunk with the token counts; continuous_usage_stats: counts in every chunk, too;
    include_obfuscation: chunks of random length, which are not made here."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class ModelRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What names a model. Without a name it is the one that is served."""

    model: str | None = None


class GenerationRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """What completions and chat completions share. Sampling parameters are SamplingParams' fields."""

    n: int | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: int | None = None
    min_p: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Number | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    logit_bias: dict[str, Number] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    priority: int | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None


class CompletionRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions. prompt: a text, token ids, or a list of either."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None


class ConversationRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """What calls with one conversation or many have in common."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None


class ChatCompletionRequest(ConversationRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]


class BatchChatCompletionRequest(ConversationRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions/batch. messages: a list of conversations."""

    messages: list[list[dict[str, Any]]]


class AnthropicMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn. A last one of the assistant's is continued."""

    role: str
    content: Content


class CountTokensRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages/count_tokens."""

    messages: list[AnthropicMessage]
    system: Content | None = None


class MessagesRequest(CountTokensRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: int | None = None


class TokenizeRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize: a prompt, or the messages of a conversation."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None


class DetokenizeRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize."""

    tokens: list[int]
