"""From texts and conversations to token ids that fit the model.

A long text is encoded on a thread, so that the streams of everyone else go on meanwhile (room.py); one that can only
have too many tokens is refused by its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request

from octavo.engine.llm_engine import ModelInfo
from octavo.server.api_errors import ApiError
from octavo.server.protocol import GenerationRequest
from octavo.server.room import Lane, lane_for
from octavo.server.serving import Serving
from octavo.server.settings import ServerSettings
from octavo.server.streaming import cancelled_on_disconnect
from octavo.shown import shown
from octavo.text.tokenizer import LONG_TEXT, Tokenizer

T = TypeVar("T")
#: parts of a message's content that are looked at one by one before the rest is taken for long
_FEW_PARTS = 16
#: what chat_template_kwargs may not name: other fields say it, or would be taken for what is not theirs to say
_RESERVED = frozenset(
    {"self", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message"}
)


class Conversation(Protocol):
    """The fields of a request that brings messages."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    add_special_tokens: bool | None
    chat_template: str | None
    chat_template_kwargs: dict[str, Any] | None
    documents: list[dict[str, Any]] | None


@dataclass(slots=True, kw_only=True)
class PlainConversation:
    """Messages by themselves, for APIs that have no fields for the rest. A Conversation."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None


async def encode_texts(
    request: Request,
    serving: Serving,
    texts: Sequence[str],
    add_special_tokens: bool,
    name: str,
    fits: ModelInfo | None,
) -> list[list[int]]:
    """name: the field they came in. fits: the model whose context each must fit; None for texts of any length."""
    tokenizer = serving.tokenizer(f"a {name} in text")

    def encode() -> list[list[int]]:
        for text in texts:
            _check_bytes(tokenizer, text, name, fits)
        return [tokenizer.encode(text, add_special_tokens) for text in texts]

    size = sum(map(len, texts))
    return encode() if size <= LONG_TEXT else await _in_lane(request, serving, lane_for(size), encode)


async def encode_conversation(
    request: Request, serving: Serving, asked: Conversation, fits: ModelInfo | None
) -> list[int]:
    """Through the model's chat template, or the request's own if the server trusts those. fits: as for texts."""
    tokenizer, settings = serving.tokenizer("a conversation"), serving.settings
    _check_template(asked, tokenizer, settings)

    def encode() -> list[int]:
        check_messages(asked.messages, settings)
        text = tokenizer.apply_chat_template(
            asked.messages,
            add_generation_prompt=asked.add_generation_prompt is not False,
            continue_final_message=bool(asked.continue_final_message),
            chat_template=asked.chat_template,
            **_variables(asked),
        )
        _check_bytes(tokenizer, text, "messages", fits)
        return tokenizer.encode(text, add_special_tokens=bool(asked.add_special_tokens))

    is_foreign = asked.chat_template is not None and asked.chat_template not in tokenizer.chat_templates
    lane = "templates" if is_foreign else lane_for(_text_len(asked.messages))
    return await _in_lane(request, serving, lane, encode)


async def _in_lane(request: Request, serving: Serving, lane: Lane, work: Callable[[], T]) -> T:
    """Raises ClientDisconnect if nobody waits for it any more: what has not begun then never does."""
    if lane == "short":
        return await serving.lanes.run(lane, work)
    async with cancelled_on_disconnect(request.receive):
        return await serving.lanes.run(lane, work)
    raise ClientDisconnect


def _variables(asked: Conversation) -> dict[str, Any]:
    """What the template is given beside the messages."""
    variables = dict(asked.chat_template_kwargs or {})
    reserved = sorted(_RESERVED & set(variables))
    if reserved:
        raise ApiError(
            400,
            f"chat_template_kwargs has the key {reserved[0]!r}, which is not a variable of the template's: "
            "use the request's own field of that name, if it has one",
            param="chat_template_kwargs",
        )
    if asked.documents is not None:
        variables["documents"] = asked.documents
    return variables


def check_messages(messages: Sequence[Mapping[str, Any]], settings: ServerSettings) -> None:
    """What can be said of a conversation whatever the template."""
    most = settings.max_messages_per_request
    if not 1 <= len(messages) <= most:
        raise ApiError(400, f"messages holds {len(messages)} messages, allowed are 1 to {most}", param="messages")
    for index, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str) or not role:  # which names there are is the template's to know
            raise ApiError(
                400,
                f"messages[{index}].role is {shown(role)}, allowed is a name: user, assistant, system or another that "
                "the model's chat template knows",
                param="messages",
            )
        content = message.get("content")
        is_silent = role == "assistant" and "content" in message
        if content is None and not (is_silent or message.get("tool_calls") or message.get("function_call")):
            raise ApiError(
                400,
                f"messages[{index}].content is missing or null, allowed is text or parts",
                param="messages",
            )
        if isinstance(content, list):
            for part_index, part in enumerate(content):
                _check_part(f"messages[{index}].content[{part_index}]", part)
        elif content is not None and not isinstance(content, str):
            raise ApiError(
                400,
                f"messages[{index}].content is {shown(content)}, allowed is a string or a list of text parts",
                param="messages",
            )


def cut(prompt: list[int], asked: GenerationRequest, max_tokens: int | None, info: ModelInfo) -> list[int]:
    """The prompt's last tokens, or its first if truncation_side is right: as many as truncate_prompt_tokens says; -1:
    as many as leave room for max_tokens."""
    keep = asked.truncate_prompt_tokens
    if asked.truncation_side not in (None, "left", "right"):
        raise ApiError(
            400,
            f"truncation_side is {shown(asked.truncation_side)}, allowed are left and right",
            param="truncation_side",
        )
    if keep is None:
        return prompt
    most = info.max_model_len - 1
    if keep != -1 and not 1 <= keep <= most:
        raise ApiError(
            400,
            f"truncate_prompt_tokens is {keep}, allowed are 1 to {most}, and -1 for as many as fit",
            param="truncate_prompt_tokens",
        )
    if keep == -1:
        keep = max(1, info.max_model_len - max(max_tokens or 1, 1))
    return prompt[:keep] if asked.truncation_side == "right" else prompt[-keep:]


def room_for_output(num_prompt: int, max_tokens: int | None, info: ModelInfo, names: tuple[str, str]) -> int:
    """How many tokens the context leaves. names: the fields of prompt and max_tokens, for the error if the prompt
    takes all of it, or if more is asked for than any prompt could leave."""
    room = info.max_model_len - num_prompt
    prompt_name, max_name = names
    if room < 1:
        raise _too_long(prompt_name, f"{num_prompt} tokens", info)
    if max_tokens is not None and max_tokens > info.max_model_len:
        raise ApiError(
            400,
            f"{max_name} is {max_tokens}, allowed are up to {info.max_model_len}, the model's context: lower it, or "
            "leave it out for what the prompt leaves",
            param=max_name,
            code="context_length_exceeded",
        )
    return room


def _check_bytes(tokenizer: Tokenizer, text: str, name: str, info: ModelInfo | None) -> None:
    """Refuse a text whose tokens can only be too many, without making them."""
    if info is None or len(text) < info.max_model_len:
        return
    if (fewest := tokenizer.fewest_tokens(text)) >= info.max_model_len:
        raise _too_long(name, f"{len(text)} characters, which are {fewest} tokens at least", info)


def _too_long(name: str, size: str, info: ModelInfo) -> ApiError:
    return ApiError(
        400,
        f"{name} has {size}, allowed are {info.max_model_len - 1}: the model's context is {info.max_model_len} tokens "
        "and one new token must fit; shorten it or set truncate_prompt_tokens",
        param=name,
        code="context_length_exceeded",
    )


def _check_part(where: str, part: object) -> None:
    if isinstance(part, str):
        return
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
        raise ApiError(
            400,
            f"{where} is of type {shown(kind)}, allowed is {{'type': 'text', 'text': ...}}: the model reads text",
            param="messages",
        )


def _check_template(asked: Conversation, tokenizer: Tokenizer, settings: ServerSettings) -> None:
    """A template of the request's must be text: as the name of a file it would be read from the server's disk."""
    template = asked.chat_template
    if template is None:
        if tokenizer.chat_template is None:
            raise ApiError(
                400,
                "this model has no chat template: it continues texts and was not made for conversations. Send the text "
                "as a prompt to /v1/completions (Ollama's clients: /api/generate), or start the server with "
                "--chat-template FILE",
                param="messages",
                code="no_chat_template",
            )
        return
    if not settings.trust_request_chat_template:
        raise ApiError(
            400,
            "chat_template is given, but this server takes no templates from requests; leave it out, or start the "
            "server with --trust-request-chat-template",
            param="chat_template",
        )
    if template not in tokenizer.chat_templates and "{" not in template and "\n" not in template:
        raise ApiError(
            400,
            f"chat_template is {shown(template)}, allowed is Jinja text or the name of one of the model's templates",
            param="chat_template",
        )


def _text_len(messages: Sequence[Mapping[str, Any]]) -> int:
    """About how many characters; a message of many parts counts as long."""
    total = 0
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        parts = content if isinstance(content, list) else [content]
        total += sum(_part_len(part) for part in parts[:_FEW_PARTS]) + 64 * 1024 * (len(parts) > _FEW_PARTS)
    return total


def _part_len(part: Any) -> int:
    text = part.get("text") if isinstance(part, dict) else part
    return len(text) if isinstance(text, str) else 0
