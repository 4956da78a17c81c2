"""Bodies of /v1/responses: the request, the response that it makes, and the items of its output."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from octavo.server.answer_bodies import ChatTokenLogprob
from octavo.server.protocol import SAME, ModelRequest, Number, takes_sampling

Item = dict[str, Any]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

#: sampling parameters about several answers to one prompt; a response is one
_OF_SEVERAL = frozenset(
    (
        *("n", "best_of", "use_beam_search", "length_penalty", "early_stopping"),
        *("num_beam_groups", "diversity_penalty"),
    )
)
#: sampling parameters of a response, by their own names
SAMPLING = {name: ours for name, ours in SAME.items() if name not in _OF_SEVERAL}


class ReasoningOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """generate_summary: the former name of summary."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of the answer's text."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponseStreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """include_obfuscation: events of random length, which are not supported."""

    include_obfuscation: bool | None = None


@takes_sampling(SAMPLING)
class ResponsesRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/responses. input: a text, or items."""

    input: str | list[Item]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    logit_bias: dict[str, Number] | None = None
    structured_outputs: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: int | None = None
    request_id: str | None = None
    cache_salt: str | None = None


class OutputText(msgspec.Struct, kw_only=True, tag_field="type", tag="output_text"):
    """logprobs: of the tokens that wrote the text, if they were asked for."""

    text: str
    annotations: list[None] = []
    logprobs: list[ChatTokenLogprob] = []


class ReasoningText(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    text: str


class SummaryText(msgspec.Struct, kw_only=True, tag_field="type", tag="summary_text"):
    text: str


class ReasoningItem(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """Thoughts: in the content, or in the summary if one was asked for. encrypted_content: thoughts are sent as they
    are."""

    id: str
    summary: list[SummaryText] = []
    content: list[ReasoningText] = []
    encrypted_content: None = None
    status: ItemStatus = "in_progress"


class MessageItem(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    status: ItemStatus = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class CallItem(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """call_id: what the result of the call is sent back with. arguments: JSON, as text."""

    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: ItemStatus = "in_progress"


OutputItem = ReasoningItem | MessageItem | CallItem


class InputTokensDetails(msgspec.Struct, kw_only=True):
    """cached_tokens: found in the prefix cache. cache_write_tokens: writing them has no price here."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, kw_only=True):
    """reasoning_tokens: those of the thoughts, without the marks around them."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFault(msgspec.Struct, kw_only=True):
    """code: OpenAI's name for the kind of failure."""

    code: str
    message: str


class IncompleteDetails(msgspec.Struct, kw_only=True):
    reason: str


class ResponseReasoning(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None


class ResponseText(msgspec.Struct, kw_only=True):
    format: dict[str, Any]
    verbosity: str = "medium"


class ResponseObject(msgspec.Struct, kw_only=True):
    """A response, and what was asked for. store: whether it is kept."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus = "in_progress"
    background: bool
    completed_at: int | None = None
    error: ResponseFault | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ResponseReasoning
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: ResponseText
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None


class ResponseDeleted(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputItems(msgspec.Struct, kw_only=True):
    """A page of the items that a response was made from. has_more: whether others follow the last."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


#: as in openapi.py: the request's struct, the answer's, and whether it may stream
BODIES: dict[str, tuple[type[msgspec.Struct] | None, type[msgspec.Struct] | None, bool]] = {
    "/v1/responses": (ResponsesRequest, ResponseObject, True),
    "GET /v1/responses/{id}": (None, ResponseObject, True),
    "DELETE /v1/responses/{id}": (None, ResponseDeleted, False),
    "/v1/responses/{id}/cancel": (None, ResponseObject, False),
    "/v1/responses/{id}/input_items": (None, InputItems, False),
}
