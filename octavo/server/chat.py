"""POST /v1/chat/completions, and vLLM's /v1/chat/completions/batch: many conversations in one call, one choice each.

{"messages": [[conversation 0], [conversation 1], ...], ...}  ──▶  {"choices": [answer 0, answer 1, ...]}
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import OctavoError
from octavo.outputs import CompletionOutput, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.api_errors import ApiError, as_api_error
from octavo.server.chunks import ChatChunks, OpenAIEvents
from octavo.server.generation import complete, stream
from octavo.server.json_pieces import LazyList
from octavo.server.logprobs import chat_logprobs, prompt_logprobs
from octavo.server.openai_calls import (
    Call,
    answer_size,
    check_logprob_token_ids,
    check_num_logprobs,
    check_pairs,
    make_call,
    total_usage,
)
from octavo.server.prompts import cut, encode_conversation, room_for_output
from octavo.server.protocol import BatchChatCompletionRequest, ChatCompletionRequest, ConversationRequest
from octavo.server.responses import ChatChoice, ChatCompletionResponse, ChatLogprobs, ChatMessage, request_times
from octavo.server.sampling import sampling_params
from octavo.server.serving import Serving, answer
from octavo.server.streaming import CLIENT_CLOSED_REQUEST, cancelled_on_disconnect


async def create_chat_completion(request: Request, serving: Serving) -> Response:
    """Answer a conversation."""
    asked = await serving.read(request, ChatCompletionRequest)
    check_pairs(asked)
    num_top = number_of_alternatives(asked)
    prompt = await encode_chat(request, asked, serving)
    params = chat_params(asked, prompt, num_top, serving)
    call = make_call(
        request,
        asked,
        serving,
        kind="chatcmpl",
        prompts=[prompt],
        params=params,
        num_top=num_top,
        names_limit=names_limit(asked),
    )
    echo = continued_text(asked) if asked.echo else ""
    headers, room = serving.id_headers(call.known_as), serving.logprob_room
    if asked.stream:
        outputs = room.held(call.num_logprobs, stream(serving.client, call.generation))
        return serving.event_stream(outputs, OpenAIEvents(call, ChatChunks(call, echo)), headers)
    async with cancelled_on_disconnect(request.receive):
        with await room.take(call.num_logprobs) as share:
            (output,) = await complete(serving.client, call.generation)
            size = answer_size(call, [output], echo)
            made = await answer(serving, size, lambda: _response(call, asked, output, echo), headers)
            return share.until_sent(made)
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def encode_chat(request: Request, asked: ChatCompletionRequest, serving: Serving) -> list[int]:
    fits = serving.client.model_info if asked.truncate_prompt_tokens is None else None
    prompt = await encode_conversation(request, serving, asked, fits)
    return cut(prompt, asked, _wanted(asked)[1], serving.client.model_info)


def names_limit(asked: ConversationRequest) -> bool:
    """Whether the request itself limits the answer's length."""
    return asked.max_tokens is not None or asked.max_completion_tokens is not None


def number_of_alternatives(asked: ChatCompletionRequest) -> int | None:
    """Alternatives to report per token; -1 for all that the engine returns; None for no logprobs."""
    if asked.top_logprobs and not asked.logprobs:  # 0 asks for none
        raise ApiError(
            400,
            f"top_logprobs is {asked.top_logprobs} and logprobs is not true, allowed is both or neither: "
            "set logprobs to true",
            param="top_logprobs",
        )
    if check_logprob_token_ids(asked, bool(asked.logprobs)):
        return -1
    return (asked.top_logprobs or 0) if asked.logprobs else None


def chat_params(
    asked: ChatCompletionRequest, prompt: list[int], num_top: int | None, serving: Serving
) -> SamplingParams:
    """The answer is limited to what the context leaves, even if more is requested."""
    name, wanted = _wanted(asked)
    info = serving.client.model_info
    room = room_for_output(len(prompt), wanted, info, ("messages", name))
    check_num_logprobs(info, top_logprobs=asked.top_logprobs, prompt_logprobs=asked.prompt_logprobs)
    try:
        return sampling_params(
            asked,
            info.default_sampling_params,
            serving.settings,
            max_tokens=room if wanted is None else min(wanted, room),
            logprobs=None if asked.logprob_token_ids else num_top,
            prompt_logprobs=asked.prompt_logprobs,
        )
    except ApiError as error:  # the engine's names are not always the request's
        error.param = name if error.param == "max_tokens" else error.param
        raise


def _wanted(asked: ChatCompletionRequest) -> tuple[str, int | None]:
    """-> the name of the field that limits the answer, and the limit."""
    if None not in (asked.max_tokens, asked.max_completion_tokens) and asked.max_tokens != asked.max_completion_tokens:
        raise ApiError(
            400,
            f"max_tokens is {asked.max_tokens} and max_completion_tokens is {asked.max_completion_tokens}, which are "
            "two names of one limit: send one of them",
            param="max_completion_tokens",
        )
    if asked.max_completion_tokens is None:
        return "max_tokens", asked.max_tokens
    return "max_completion_tokens", asked.max_completion_tokens


def continued_text(asked: ChatCompletionRequest) -> str:
    """The last message's text, if the answer continues it."""
    last = asked.messages[-1]
    if last.get("role") != "assistant":
        return ""
    content = last.get("content") or ""
    return (
        content
        if isinstance(content, str)
        else "\n".join(part if isinstance(part, str) else part["text"] for part in content)
    )


def _response(call: Call, asked: ChatCompletionRequest, output: RequestOutput, echo: str) -> ChatCompletionResponse:
    counts = total_usage([output])
    return ChatCompletionResponse(
        id=call.id,
        created=call.created,
        model=call.model,
        choices=[choice(call, one, echo) for one in output.outputs],
        usage=counts,
        prompt_logprobs=None if asked.prompt_logprobs is None else prompt_logprobs(output.prompt_logprobs or []),
        prompt_token_ids=output.prompt_token_ids if call.has_token_ids else None,
        metrics=request_times(output, counts.completion_tokens) if call.has_metrics else None,
    )


def choice(call: Call, completion: CompletionOutput, echo: str) -> ChatChoice:
    logprobs = None
    if call.num_top is not None:
        rows = LazyList(chat_logprobs(call, completion.token_ids, completion.logprobs or []))
        logprobs = ChatLogprobs(content=rows)  # type: ignore[arg-type]  # a list in JSON
    return ChatChoice(
        index=completion.index,
        message=ChatMessage(content=echo + completion.text),
        logprobs=logprobs,
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        token_ids=completion.token_ids if call.has_token_ids else None,
    )


async def create_chat_batch(request: Request, serving: Serving) -> Response:
    """Answer many conversations, one choice each."""
    asked = await serving.read(request, BatchChatCompletionRequest)
    _check_batch(asked, serving.settings.max_prompts_per_request)
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
            return share.until_sent(await answer(serving, size, lambda: _batch_response(call, chats, outputs), headers))
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _check_batch(asked: BatchChatCompletionRequest, most: int) -> None:
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
    call: Call, chats: list[ChatCompletionRequest], outputs: list[RequestOutput]
) -> ChatCompletionResponse:
    choices = []
    for place, (chat, output) in enumerate(zip(chats, outputs, strict=True)):
        told = choice(call, output.outputs[0], continued_text(chat) if chat.echo else "")
        told.index = place
        choices.append(told)
    return ChatCompletionResponse(
        id=call.id, created=call.created, model=call.model, choices=choices, usage=total_usage(outputs)
    )
