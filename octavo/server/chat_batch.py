"""POST /v1/chat/completions/batch: many conversations in one call, vLLM's route; answered together, one choice each.

{"messages": [[conversation 0], [conversation 1], ...], ...}  ──▶  {"choices": [answer 0, answer 1, ...]}
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import OctavoError
from octavo.outputs import RequestOutput
from octavo.server.api_errors import ApiError, as_api_error
from octavo.server.chat import chat_params, choice, continued_text, encode_chat, names_limit, number_of_alternatives
from octavo.server.generation import complete
from octavo.server.large_answers import answer, answer_size
from octavo.server.openai_calls import Call, check_pairs, make_call, total_usage
from octavo.server.protocol import BatchChatCompletionRequest, ChatCompletionRequest
from octavo.server.responses import ChatCompletionResponse
from octavo.server.serving import Serving
from octavo.server.streaming import CLIENT_CLOSED_REQUEST, cancelled_on_disconnect


async def create_chat_batch(request: Request, serving: Serving) -> Response:
    """Answer many conversations, one choice each."""
    asked = await serving.read(request, BatchChatCompletionRequest)
    _check(asked, serving.settings.max_prompts_per_request)
    chats = _chats(asked)
    num_top = number_of_alternatives(chats[0])
    prompts = [await _encoded(request, place, chat, serving) for place, chat in enumerate(chats)]
    shortest = min(prompts, key=len)  # the engine gives each no more than its own prompt leaves
    params = chat_params(chats[0], shortest, num_top, serving)
    call = make_call(
        request,
        asked,
        serving,
        kind="chatcmpl",
        prompts=prompts,
        params=params,
        num_top=num_top,
        names_limit=names_limit(asked),
    )
    headers = serving.id_headers(call.known_as)
    async with cancelled_on_disconnect(request.receive):
        with await serving.logprob_room.take(call.num_logprobs) as share:
            outputs = await complete(serving.client, call.generation)
            size = answer_size(call, outputs, "")
            return share.until_sent(await answer(serving, size, lambda: _response(call, chats, outputs), headers))
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _check(asked: BatchChatCompletionRequest, most: int) -> None:
    check_pairs(asked)
    for name, only in (("stream", None), ("n", 1), ("prompt_logprobs", None)):
        value = getattr(asked, name)
        if value is not None and value is not False and value != only:
            allowed = "leaving it out" if only is None else f"{only}, as each conversation has one answer"
            raise ApiError(400, f"{name} is {value}, allowed for a batch is {allowed}", param=name)
    if not 1 <= len(asked.messages) <= most:
        raise ApiError(
            400,
            f"messages holds {len(asked.messages)} conversations, allowed are 1 to {most}: send several requests, or "
            "start the server with a larger --max-prompts-per-request",
            param="messages",
        )


def _chats(asked: BatchChatCompletionRequest) -> list[ChatCompletionRequest]:
    """As if each had come by itself."""
    fields = {name: value for name, value in msgspec.structs.asdict(asked).items() if name != "messages"}
    return [ChatCompletionRequest(**fields, messages=messages) for messages in asked.messages]


async def _encoded(request: Request, place: int, chat: ChatCompletionRequest, serving: Serving) -> list[int]:
    """Raises ApiError that says which conversation is at fault."""
    try:
        prompt = await encode_chat(request, chat, serving)
        chat_params(chat, prompt, number_of_alternatives(chat), serving)
    except (ApiError, OctavoError) as fault:
        error = as_api_error(fault)
        error.message = f"conversation {place}: {error.message}"
        raise error from None
    return prompt


def _response(call: Call, chats: list[ChatCompletionRequest], outputs: list[RequestOutput]) -> ChatCompletionResponse:
    choices = []
    for place, (chat, output) in enumerate(zip(chats, outputs, strict=True)):
        told = choice(call, output.outputs[0], continued_text(chat) if chat.echo else "")
        told.index = place
        choices.append(told)
    return ChatCompletionResponse(
        id=call.id, created=call.created, model=call.model, choices=choices, usage=total_usage(outputs)
    )
