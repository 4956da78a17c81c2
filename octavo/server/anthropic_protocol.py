"""Bodies and answers of Anthropic's routes, with Anthropic's field names."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.sampling_params import known_to
from octavo.server.protocol import Content, ModelRequest, takes_sampling


class AnthropicMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn. If the last one is the assistant's, the answer continues it."""

    role: str
    content: Content


class CountTokensRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages/count_tokens."""

    messages: list[AnthropicMessage]
    system: Content | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None


@takes_sampling(known_to("anthropic"))
class MessagesRequest(CountTokensRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    output_config: dict[str, Any] | None = None
    stream: bool | None = None


class TextBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="text"):
    text: str
    citations: None = None


class ThinkingBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="thinking"):
    """signature: Anthropic's own servers sign thoughts."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


AnthropicBlock = TextBlock | ThinkingBlock | ToolUseBlock


class OutputTokensDetails(msgspec.Struct, kw_only=True):
    thinking_tokens: int


class AnthropicUsage(msgspec.Struct, kw_only=True):
    """input_tokens: computed tokens; cache_read_input_tokens: those from the prefix cache. output_tokens_details: of
    an answer that is read for thoughts."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int
    output_tokens_details: OutputTokensDetails | UnsetType = UNSET


class MessagesResponse(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnthropicBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: AnthropicUsage


class CountTokensResponse(msgspec.Struct, kw_only=True):
    input_tokens: int


#: as in openapi.py: the request's struct, the answer's, and whether it may stream
BODIES: dict[str, tuple[type[msgspec.Struct] | None, type[msgspec.Struct] | None, bool]] = {
    "/v1/messages": (MessagesRequest, MessagesResponse, True),
    "/v1/messages/count_tokens": (CountTokensRequest, CountTokensResponse, False),
}
