"""From texts and conversations to token ids that fit the model.

A long text is encoded on a thread (streaming.Lanes), so that all streams go on. A text that must have too many tokens
for the model is refused before it is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from octavo.engine.input import Prompt
from octavo.engine.pooled import pair_prompt
from octavo.request import ModelInfo
from octavo.server.api_errors import OR_CUT, ApiError, bad_field
from octavo.server.protocol import ChatCompletionRequest, GenerationRequest
from octavo.server.serving import Serving
from octavo.server.settings import ServerSettings
from octavo.server.streaming import Lane, cancelled_on_disconnect, lane_for
from octavo.shown import shown
from octavo.text.tokenizer import LONG_TEXT, Tokenizer

T = TypeVar("T")
#: parts of a message's content that are measured; more count as long
_FEW_PARTS = 16
#: keys that chat_template_kwargs may not have: other fields set them, or the call itself does
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
#: variables by which templates let a model think or not
_SWITCHES = ("enable_thinking", "thinking")
_RESERVED = frozenset(
    {"self", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message"}
)


async def encode_texts(
    request: Request,
    serving: Serving,
    texts: Sequence[str],
    add_special_tokens: bool,
    name: str,
    fits: ModelInfo | None,
) -> list[list[int]]:
    """name: the field that held the texts. fits: the model whose context each must fit; None for any length."""
    tokenizer = serving.tokenizer(f"a {name} in text")

    def encode() -> list[list[int]]:
        for text in texts:
            _check_bytes(tokenizer, text, name, fits)
        return [tokenizer.encode(text, add_special_tokens) for text in texts]

    size = sum(map(len, texts))
    return encode() if size <= LONG_TEXT else await _in_lane(request, serving, lane_for(size), encode)


async def encode_pairs(
    request: Request, serving: Serving, pairs: Sequence[tuple[str, str]], keep: int | None, add_special_tokens: bool
) -> list[Prompt]:
    """Each pair of texts as one prompt for a cross-encoder. keep: the most tokens of each; None: it must fit."""
    tokenizer, info = serving.tokenizer("a pair of texts"), serving.client.model_info

    def encode() -> list[Prompt]:
        return [pair_prompt(tokenizer, pair, keep, info, adds_special=add_special_tokens) for pair in pairs]

    size = sum(len(one) + len(other) for one, other in pairs)
    return encode() if size <= LONG_TEXT else await _in_lane(request, serving, lane_for(size), encode)


async def encode_conversation(
    request: Request, serving: Serving, asked: ChatCompletionRequest, fits: ModelInfo | None, *, pools: bool = False
) -> list[int]:
    """Through the model's chat template, or the request's own if the server trusts those. Reads only the fields about
    messages and templates. fits: as for texts. pools: for numbers in place of an answer."""
    tokenizer, settings = serving.tokenizer("a conversation"), serving.settings
    if (form := serving.client.model_info.pooled) is not None and not pools:
        problem = f"this model {form.does} texts and generates none; call {form.how}"
        raise ApiError(400, problem, param="model", code="model_embeds")
    _check_template(asked, tokenizer, settings, pools=pools)
    template = tokenizer.chat_templates.get(asked.chat_template or "default") or asked.chat_template or ""

    def encode() -> list[int]:
        check_messages(asked.messages, settings)
        text = tokenizer.apply_chat_template(
            asked.messages,
            add_generation_prompt=asked.add_generation_prompt is not False,
            continue_final_message=bool(asked.continue_final_message),
            chat_template=asked.chat_template,
            tools=asked.tools or None,
            **_variables(asked, template),
        )
        _check_bytes(tokenizer, text, "messages", fits)
        return tokenizer.encode(text, add_special_tokens=bool(asked.add_special_tokens))

    is_foreign = asked.chat_template is not None and asked.chat_template not in tokenizer.chat_templates
    lane = "templates" if is_foreign else lane_for(_text_len(asked.messages))
    return await _in_lane(request, serving, lane, encode)


async def _in_lane(request: Request, serving: Serving, lane: Lane, work: Callable[[], T]) -> T:
    """Raises ClientDisconnect if the client leaves; then work that has not begun never does."""
    if lane == "short":
        return await serving.lanes.run(lane, work)
    async with cancelled_on_disconnect(request.receive):
        return await serving.lanes.run(lane, work)
    raise ClientDisconnect


def _variables(asked: ChatCompletionRequest, template: str) -> dict[str, Any]:
    """The template's variables beside the messages."""
    variables = dict(asked.chat_template_kwargs or {})
    if reserved := sorted(_RESERVED & set(variables)):
        raise bad_field(
            "chat_template_kwargs",
            f"has the key {reserved[0]!r}, which is not a variable of the template's: use the request's own field of "
            "that name, if it has one",
        )
    if asked.documents is not None:
        variables["documents"] = asked.documents
    if asked.reasoning_effort is not None:
        variables = {**_effort(asked.reasoning_effort, template), **variables}
    return variables


def _effort(effort: str, template: str) -> dict[str, Any]:
    """reasoning_effort as the template's own switches."""
    if effort not in _EFFORTS:
        raise bad_field("reasoning_effort", f"is {shown(effort)}, allowed are {', '.join(_EFFORTS)}")
    known = _thought_switches(template)
    if not known and effort != "none":
        problem = f"is {effort}, but the model's chat template has no switch for its thoughts: leave it out"
        raise bad_field("reasoning_effort", problem, "unsupported_parameter")
    switches: dict[str, Any] = dict.fromkeys(_SWITCHES, effort != "none")
    return {name: value for name, value in {"reasoning_effort": effort, **switches}.items() if name in known}


def has_thought_switch(template: str) -> bool:
    """Whether a chat template lets a model think or not."""
    return bool(_thought_switches(template))


def _thought_switches(template: str) -> set[str]:
    return {name for name in ("reasoning_effort", *_SWITCHES) if re.search(rf"\b{name}\b", template)}


def check_messages(messages: Sequence[Mapping[str, Any]], settings: ServerSettings) -> None:
    """What every conversation must fulfil, whatever the template."""
    most = settings.max_messages_per_request
    if not 1 <= len(messages) <= most:
        raise bad_field("messages", f"holds {len(messages)} messages, allowed are 1 to {most}")
    for index, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str) or not role:  # only the template knows which roles there are
            raise bad_field(
                f"messages[{index}].role",
                f"is {shown(role)}, allowed is a name: user, assistant, system or another that the model's chat "
                "template knows",
            )
        content, where = message.get("content"), f"messages[{index}].content"
        is_silent = role == "assistant" and "content" in message
        if content is None and not (is_silent or message.get("tool_calls") or message.get("function_call")):
            raise bad_field(where, "is missing or null, allowed is text or parts")
        if isinstance(content, list):
            for part_index, part in enumerate(content):
                _check_part(where, part_index, part)
        elif content is not None and not isinstance(content, str):
            raise bad_field(where, f"is {shown(content)}, allowed is a string or a list of text parts")


def _check_part(where: str, index: int, part: object) -> None:
    if isinstance(part, str):
        return
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
        problem = f"is of type {shown(kind)}, allowed is {{'type': 'text', 'text': ...}}: the model reads text"
        raise bad_field(f"{where}[{index}]", problem)


def cut(prompt: list[int], asked: GenerationRequest, max_tokens: int | None, info: ModelInfo) -> list[int]:
    """The prompt's last truncate_prompt_tokens tokens, or its first if truncation_side is right; -1: as many as leave
    room for max_tokens."""
    keep, side = asked.truncate_prompt_tokens, asked.truncation_side
    if side not in (None, "left", "right"):
        raise bad_field("truncation_side", f"is {shown(side)}, allowed are left and right")
    if keep is None:
        return prompt
    most = info.max_model_len - 1
    if keep != -1 and not 1 <= keep <= most:
        raise bad_field("truncate_prompt_tokens", f"is {keep}, allowed are 1 to {most}, and -1 for as many as fit")
    if keep == -1:
        keep = max(1, info.max_model_len - max(max_tokens or 1, 1))
    return prompt[:keep] if side == "right" else prompt[-keep:]


def room_for_output(num_prompt: int, max_tokens: int | None, info: ModelInfo, names: tuple[str, str]) -> int:
    """How many tokens the prompt leaves of the context. Refuses a prompt that leaves none, and a max_tokens larger than
    the context. names: the request's fields for the two."""
    room = info.max_model_len - num_prompt
    prompt_name, max_name = names
    if room < 1:
        raise _too_long(prompt_name, f"{num_prompt} tokens", info)
    if max_tokens is not None and max_tokens > info.max_model_len:
        problem = (
            f"is {max_tokens}, allowed are up to {info.max_model_len}, the model's context: lower it, or leave it out "
            "for what the prompt leaves"
        )
        raise bad_field(max_name, problem, "context_length_exceeded")
    return room


def _check_bytes(tokenizer: Tokenizer, text: str, name: str, info: ModelInfo | None) -> None:
    """Refuse a text that must have too many tokens, without encoding it."""
    if info is None or len(text) <= (most := _most_tokens(info)):
        return
    if (fewest := tokenizer.fewest_tokens(text)) > most:
        raise _too_long(name, f"{len(text)} characters, which are {fewest} tokens at least", info)


def _too_long(name: str, size: str, info: ModelInfo) -> ApiError:
    new = "" if info.pooled else " and one new token must fit"
    problem = (
        f"has {size}, allowed are {_most_tokens(info)}: the model's context is {info.max_model_len} tokens{new}; "
        f"shorten it{OR_CUT}"
    )
    return bad_field(name, problem, "context_length_exceeded")


def _most_tokens(info: ModelInfo) -> int:
    return info.max_model_len - (info.pooled is None)


def _check_template(
    asked: ChatCompletionRequest, tokenizer: Tokenizer, settings: ServerSettings, *, pools: bool
) -> None:
    """A request's template must be text: a file name would be read from the server's disk."""
    template = asked.chat_template
    if template is None:
        if tokenizer.chat_template is None:
            raise ApiError(
                400,
                "this model has no chat template: it was not made for conversations. Send the text as "
                + ("input" if pools else "a prompt to /v1/completions (Ollama's clients: /api/generate)")
                + ", or start the server with --chat-template FILE",
                param="messages",
                code="no_chat_template",
            )
        return
    if not settings.trust_request_chat_template:
        raise bad_field(
            "chat_template",
            "is given, but this server takes no templates from requests; leave it out, or start the server with "
            "--trust-request-chat-template",
        )
    if template not in tokenizer.chat_templates and "{" not in template and "\n" not in template:
        problem = f"is {shown(template)}, allowed is Jinja text or the name of one of the model's templates"
        raise bad_field("chat_template", problem)


def _text_len(messages: Sequence[Mapping[str, Any]]) -> int:
    """About how many characters. A message of many parts counts as long."""
    total = 0
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        parts = content if isinstance(content, list) else [content]
        total += sum(_part_len(part) for part in parts[:_FEW_PARTS]) + 64 * 1024 * (len(parts) > _FEW_PARTS)
    return total


def _part_len(part: Any) -> int:
    text = part.get("text") if isinstance(part, dict) else part
    return len(text) if isinstance(text, str) else 0
