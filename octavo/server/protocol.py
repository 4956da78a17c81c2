"""The bodies of requests: a struct for each route, a field for each parameter. /openapi.json is made from them.

Routes of other APIs, and those of models that pool, have a file of their own: `*_protocol.py`.

A field that is null or left out has the model's default. Fields that this engine lacks are in bodies.py, so that each
is accepted or refused by name and never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import msgspec

from octavo.sampling_params import EarlyStopping, SamplingParams

Number = int | float
Content = str | list[dict[str, Any]]
S = TypeVar("S", bound=msgspec.Struct)


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """include_usage: send a last chunk with the token counts. continuous_usage_stats: send them in every chunk too.
    include_obfuscation: chunks of random length, which are not supported."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class ModelRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A body that names a model; without a name, the first served one."""

    model: str | None = None


#: SamplingParams' types -> in JSON; requests have other fields in their own way, or not at all
_IN_JSON: Mapping[str, Any] = {
    "int": int,
    "int | None": int,
    "float": Number,
    "bool": bool,
    "EarlyStopping": EarlyStopping,
    "str | Iterable[str] | None": str | list[str],
    "Iterable[str] | None": list[str],
    "Iterable[int] | None": list[int],
    "RepetitionDetectionParams | None": dict[str, Any],
}
_IN_ITS_OWN_WAY = (
    *("max_tokens", "logprobs", "prompt_logprobs", "logprob_token_ids", "truncate_prompt_tokens", "stream_interval"),
)
_OF_PYTHON = ("detokenize", "flat_logprobs")
#: fields that mean the same in requests and in SamplingParams
SAME = {
    one.name: one.name
    for one in fields(SamplingParams)
    if one.type in _IN_JSON and one.name not in {*_IN_ITS_OWN_WAY, *_OF_PYTHON}
}


def takes_sampling(names: Mapping[str, str]) -> Callable[[type[S]], type[S]]:
    """Class decorator: adds fields for sampling parameters. names: the struct's name -> that in SamplingParams."""
    types: dict[str, Any] = {one.name: _IN_JSON.get(str(one.type)) for one in fields(SamplingParams)}
    made = [(theirs, types[ours] | None, None) for theirs, ours in names.items()]

    def decorate(kind: type[S]) -> type[S]:
        whole: Any = msgspec.defstruct(
            *(kind.__name__, made),
            bases=(kind,),
            module=kind.__module__,
            namespace={"__doc__": kind.__doc__},
            kw_only=True,
            forbid_unknown_fields=True,
        )
        return whole  # type: ignore[no-any-return]

    return decorate


@takes_sampling(SAME)
class GenerationRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """What completions and chat completions share, with the sampling parameters that mean the same."""

    max_tokens: int | None = None
    logit_bias: dict[str, Number] | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    structured_outputs: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
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
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None


class ChatCompletionRequest(ConversationRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]


class BatchChatCompletionRequest(ConversationRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions/batch. messages: a list of conversations."""

    messages: list[list[dict[str, Any]]]


class LoadLoRARequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadLoRARequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    lora_name: str
    lora_int_id: int | None = None


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
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None


class DetokenizeRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize."""

    tokens: list[int]
