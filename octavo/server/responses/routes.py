"""The routes of responses: a conversation's next turn, which the server can keep, continue and make in the background.

items ──▶ conversation.py: messages ──▶ a chat, as on /v1/chat/completions ──▶ ResponseEvents ──▶ ResponseStore
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import OctavoError
from octavo.outputs import RequestOutput
from octavo.server.access import owner_of
from octavo.server.api_errors import ApiError, as_api_error, bad_field
from octavo.server.chat import chat_params, encode_chat, number_of_alternatives
from octavo.server.generation import complete, stream
from octavo.server.json_pieces import answer
from octavo.server.openai_calls import Call, make_call
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.reading import Reading
from octavo.server.responses.asked import chat_of, check_fields, in_its_words, input_items, places_of, summary
from octavo.server.responses.events import ResponseEvents
from octavo.server.responses.making import BackgroundResponse, MadeEvents, MadeResponse
from octavo.server.responses.protocol import Item, ResponseObject, ResponseReasoning, ResponsesRequest, ResponseText
from octavo.server.responses.shortened import Place, longest_that_fits
from octavo.server.serving import Serving
from octavo.server.whole_answer import whole_answer

#: items and parts of them that are read on the event loop; each takes a few microseconds
_FEW_PARTS = 512


async def create_response(request: Request, serving: Serving) -> Response:
    """Answer a text or a list of items, behind what a kept response holds."""
    asked = await serving.read(request, ResponsesRequest)
    check_fields(asked)
    is_kept, owner = _is_kept(asked, serving), owner_of(request)
    earlier: list[Item] = []
    if asked.previous_response_id is not None:
        if (why := _why_none_is_kept(serving)) is not None:
            raise bad_field("previous_response_id", f"is {asked.previous_response_id!r}, but {why}")
        earlier = await serving.responses.items(owner, asked.previous_response_id)
    try:
        call, reading = await _call(request, serving, asked, earlier)
    except (ApiError, OctavoError) as error:
        raise in_its_words(as_api_error(error), asked) from None
    events = ResponseEvents(call, reading, _response(call, asked, is_kept), has_events=bool(asked.stream))
    items = input_items(asked) if is_kept else []
    if asked.background:
        background = BackgroundResponse(
            *(serving.responses, serving.lanes, owner, events, items), keeps_events=bool(asked.stream)
        )
        return await _in_background(serving, call, background)
    made = MadeResponse(serving.responses, serving.lanes, owner, events, items)
    if asked.stream:
        return serving.event_stream(made.stream(_outputs(serving, call)), MadeEvents(), _headers(serving, call))

    async def run() -> list[RequestOutput]:
        outputs = await complete(serving.client, call.generation)
        await made.whole(outputs[0])
        return outputs

    return await whole_answer(request, serving, call, lambda _: made.response, run=run)


async def _in_background(serving: Serving, call: Call, background: BackgroundResponse) -> Response:
    """The response as it is now, or the stream of its events."""
    most, num = serving.settings.max_background_responses, len(serving.responses.running)
    if num >= most:
        raise ApiError(
            429,
            f"{num} responses are made in the background, allowed are {most}: wait for one, cancel one, or start the "
            "server with a larger --max-background-responses",
            code="too_many_background_responses",
        )
    await background.start(_outputs(serving, call))
    if (followed := background.follow(-1)) is not None:
        return serving.event_stream(followed, MadeEvents(), _headers(serving, call))
    return await answer(serving.lanes, 0, lambda: background.response, _headers(serving, call))


async def _call(
    request: Request, serving: Serving, asked: ResponsesRequest, earlier: list[Item]
) -> tuple[Call, Reading | None]:
    """The work for the engine, and how its answer is read."""
    encode = _encode if asked.truncation != "auto" else _encode_what_fits
    chat, prompt = await encode(request, serving, asked, places_of(asked, earlier))
    num_top = number_of_alternatives(chat)
    reading = serving.answers.reading(chat, prompt, None)
    params = serving.answers.params(chat_params(chat, prompt, num_top, serving), reading)
    limited = asked.max_output_tokens is not None
    call = make_call(request, chat, serving, "resp", [prompt], params, num_top, names_limit=limited)
    return call, reading


async def _encode(
    request: Request, serving: Serving, asked: ResponsesRequest, places: Sequence[Place]
) -> tuple[ChatCompletionRequest, list[int]]:
    """The chat, and its prompt."""
    items = [item for _, item in places]
    if len(items) + sum(len(part) for one in items for part in one.values() if isinstance(part, list)) > _FEW_PARTS:
        chat = await serving.lanes.run("answers", lambda: chat_of(asked, places))
    else:
        chat = chat_of(asked, places)
    return chat, await encode_chat(request, chat, serving)


async def _encode_what_fits(
    request: Request, serving: Serving, asked: ResponsesRequest, places: Sequence[Place]
) -> tuple[ChatCompletionRequest, list[int]]:
    """The same with the newest items that leave room for the answer, or at least for a token of it."""
    most = serving.client.model_info.max_model_len
    for room in dict.fromkeys((asked.max_output_tokens or 1, 1)):

        async def attempt(some: Sequence[Place], room: int = room) -> tuple[ChatCompletionRequest, list[int]] | None:
            try:
                chat, prompt = await _encode(request, serving, asked, some)
            except ApiError as error:
                if error.code != "context_length_exceeded":
                    raise
                return None
            return (chat, prompt) if len(prompt) + room <= most else None

        if (found := await longest_that_fits(places, attempt)) is not None:
            return found
    return await _encode(request, serving, asked, places)  # which is refused


def _outputs(serving: Serving, call: Call) -> AsyncGenerator[RequestOutput]:
    return serving.logprob_room.held(call.num_logprobs, stream(serving.client, call.generation))


def _headers(serving: Serving, call: Call) -> dict[str, str]:
    return serving.id_headers(call.known_as)


_NEEDS_FILE = (
    "this server has several front ends, and what one of them keeps in memory the others do not know: start the server "
    "with --responses-store FILE, or with --api-server-count 1"
)


def _why_none_is_kept(serving: Serving) -> str | None:
    if serving.settings.max_stored_responses == 0:
        return "no response is kept here, as max_stored_responses is 0: leave it out, and send the whole conversation"
    return None if serving.client.num_front_ends == 1 or serving.responses.is_shared else _NEEDS_FILE


def _is_kept(asked: ResponsesRequest, serving: Serving) -> bool:
    """Raises ApiError if it asks for what this server cannot keep."""
    why = _why_none_is_kept(serving)
    if asked.store and why is not None:
        raise bad_field("store", f"is true, but {why}")
    if asked.background and serving.client.num_front_ends > 1:
        problem = "is true, but this server has several front ends, and only one would know of it: leave it out"
        raise bad_field("background", problem)
    if asked.background and why is not None:
        raise bad_field("background", f"is true, but {why}")
    return asked.store is not False and why is None


def _response(call: Call, asked: ResponsesRequest, is_kept: bool) -> ResponseObject:
    """Its id is new, whatever the request's: no other can have it."""
    options, text = asked.reasoning, asked.text
    return ResponseObject(
        id=f"resp_{uuid4().hex}",
        created_at=int(time.time()),
        background=bool(asked.background),
        instructions=asked.instructions,
        max_output_tokens=asked.max_output_tokens,
        max_tool_calls=asked.max_tool_calls,
        metadata=asked.metadata or {},
        model=call.model,
        output=[],
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        previous_response_id=asked.previous_response_id,
        reasoning=ResponseReasoning(effort=None if options is None else options.effort, summary=summary(asked)),
        store=is_kept,
        temperature=call.params.temperature,
        text=ResponseText(format=(text.format if text is not None else None) or {"type": "text"}),
        tool_choice=asked.tool_choice or "auto",
        tools=asked.tools or [],
        top_logprobs=asked.top_logprobs or 0,
        top_p=call.params.top_p,
        truncation="auto" if asked.truncation == "auto" else "disabled",
    )
