"""POST /v1/chat/completions/batch, vLLM's: many conversations in one call, one choice each.

{"messages": [[conversation 0], [conversation 1], ...], ...}  ──▶  {"choices": [answer 0, answer 1, ...]}
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import OctavoError
from octavo.outputs import RequestOutput
from octavo.server.answer_bodies import ChatCompletionResponse
from octavo.server.api_errors import ApiError, as_api_error, bad_field
from octavo.server.chat import (
    chat_params,
    choice,
    continued_text,
    encode_chat,
    names_limit,
    number_of_alternatives,
    read_answer,
    reading_of,
)
from octavo.server.openai_calls import Call, check_pairs, make_call
from octavo.server.protocol import BatchChatCompletionRequest, ChatCompletionRequest
from octavo.server.reading import Reading
from octavo.server.serving import Serving
from octavo.server.whole_answer import total_usage, whole_answer
from octavo.text.answers.parser import num_thoughts


async def create_chat_batch(request: Request, serving: Serving) -> Response:
    """Answer many conversations, one choice each."""
    asked = await serving.read(request, BatchChatCompletionRequest)
    _check_batch(asked, serving.settings.max_prompts_per_request)
    chats = _chats(asked)
    num_top = number_of_alternatives(chats[0])
    prompts = [await _encoded(request, place, chat, serving) for place, chat in enumerate(chats)]
    shortest = min(prompts, key=len)  # the engine limits each to what its own prompt leaves
    readings = [reading_of(chat, prompt, serving) for chat, prompt in zip(chats, prompts, strict=True)]
    params = serving.answers.params(chat_params(chats[0], shortest, num_top, serving), readings[0])
    limited = names_limit(asked)
    call = make_call(request, asked, serving, "chatcmpl", prompts, params, num_top, names_limit=limited)
    return await whole_answer(request, serving, call, lambda outputs: _batch_response(call, chats, outputs, readings))


def _check_batch(asked: BatchChatCompletionRequest, most: int) -> None:
    check_pairs(asked)
    for name, only in (("stream", None), ("n", 1), ("prompt_logprobs", None)):
        value = getattr(asked, name)
        if value is not None and value is not False and value != only:
            allowed = "leaving it out" if only is None else f"{only}, as each conversation has one answer"
            raise bad_field(name, f"is {value}, allowed for a batch is {allowed}")
    if not 1 <= len(asked.messages) <= most:
        problem = (
            f"holds {len(asked.messages)} conversations, allowed are 1 to {most}: send several requests, or start the "
            "server with a larger --max-prompts-per-request"
        )
        raise bad_field("messages", problem)


def _chats(asked: BatchChatCompletionRequest) -> list[ChatCompletionRequest]:
    """One request per conversation."""
    fields = {name: value for name, value in msgspec.structs.asdict(asked).items() if name != "messages"}
    return [ChatCompletionRequest(**fields, messages=messages) for messages in asked.messages]


async def _encoded(request: Request, place: int, chat: ChatCompletionRequest, serving: Serving) -> list[int]:
    """Raises ApiError that names the conversation at fault."""
    try:
        prompt = await encode_chat(request, chat, serving)
        chat_params(chat, prompt, number_of_alternatives(chat), serving)
    except (ApiError, OctavoError) as fault:
        error = as_api_error(fault)
        error.message = f"conversation {place}: {error.message}"
        raise error from None
    return prompt


def _batch_response(
    call: Call, chats: list[ChatCompletionRequest], outputs: list[RequestOutput], readings: list[Reading | None]
) -> ChatCompletionResponse:
    choices, answers = [], []
    for place, (chat, output, reading) in enumerate(zip(chats, outputs, readings, strict=True)):
        echo = continued_text(chat) if chat.echo else ""
        answers.append(read_answer(reading, output.outputs[0]))
        choices.append(choice(call, output.outputs[0], echo, reading, answers[-1]))
        choices[-1].index = place
    return ChatCompletionResponse(
        id=call.id,
        created=call.created,
        model=call.model,
        choices=choices,
        usage=total_usage(outputs, num_thoughts(answers)),
    )
