"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients expect them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from octavo.request import ModelInfo
from octavo.sampling_params import SamplingParams, known_to
from octavo.server.anthropic_answer import Message
from octavo.server.anthropic_input import conversation_of, thought_budget
from octavo.server.anthropic_protocol import CountTokensRequest, CountTokensResponse, MessagesRequest
from octavo.server.api_errors import ApiError, bad_field
from octavo.server.chat import continued_text
from octavo.server.generation import Generation, checked_params, complete, from_headers, stream
from octavo.server.prompts import encode_conversation, room_for_output
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.response_format import asked_of_anthropic
from octavo.server.serving import Serving, json_response, request_id
from octavo.server.streaming import CLIENT_CLOSED_REQUEST, cancelled_on_disconnect
from octavo.shown import shown

#: text blocks checked on the event loop; each takes a microsecond
_FEW_BLOCKS = 1024


async def create_message(request: Request, serving: Serving) -> Response:
    """Answer a conversation, for Anthropic's clients."""
    asked = await serving.read(request, MessagesRequest)
    chat, prompt = await _prompt(request, asked, serving, serving.client.model_info)
    reading = serving.answers.reading(chat, prompt, continued_text(chat) if chat.continue_final_message else None)
    params = serving.answers.params(_params(asked, len(prompt), serving), reading)
    known_as = request_id(request, None)
    more = {"lora_request": serving.adapter(asked.model), **from_headers(request)}
    generation = Generation(request_id=f"msg_{known_as}", prompts=[prompt], params=params, **more)
    message = Message(generation.request_id, asked, serving.client.model_info.max_model_len, reading)
    headers = {"request-id": generation.request_id} | serving.id_headers(known_as)
    if asked.stream:
        return serving.event_stream(stream(serving.client, generation), message, headers)
    async with cancelled_on_disconnect(request.receive):
        (output,) = await complete(serving.client, generation)
        return json_response(message.whole(output), headers)
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def count_tokens(request: Request, serving: Serving) -> Response:
    """How many tokens a conversation has."""
    asked = await serving.read(request, CountTokensRequest)
    _, prompt = await _prompt(request, asked, serving, None)
    return json_response(CountTokensResponse(input_tokens=len(prompt)))


async def _prompt(
    request: Request, asked: CountTokensRequest, serving: Serving, fits: ModelInfo | None
) -> tuple[ChatCompletionRequest, list[int]]:
    """-> the chat that was asked for, and its tokens. fits: the model whose context the prompt must fit."""
    contents = [message.content for message in asked.messages]
    num_blocks = sum(len(one) for one in (*contents, asked.system) if isinstance(one, list))
    if num_blocks > _FEW_BLOCKS:
        chat = await serving.lanes.run("answers", lambda: conversation_of(asked, serving.settings))
    else:
        chat = conversation_of(asked, serving.settings)
    return chat, await encode_conversation(request, serving, chat, fits)


def _params(asked: MessagesRequest, num_prompt: int, serving: Serving) -> SamplingParams:
    """Anthropic's clients must set max_tokens without knowing the context, so the context may end an answer; its
    stop_reason then says so."""
    info = serving.client.model_info
    room_for_output(num_prompt, None, info, ("messages", "max_tokens"))
    for name in ("temperature", "top_p"):
        value = getattr(asked, name)
        if value is not None and not 0 <= value <= 1:
            raise bad_field(name, f"is {value}, allowed is 0 to 1")
    budget = thought_budget(asked)
    if budget is not None and serving.tokenizer("a conversation").thought_marks is None:
        raise bad_field("thinking", f"is {shown(asked.thinking)}, but this model is not known to think: leave it out")
    try:
        return checked_params(
            info.default_sampling_params,
            serving.settings,
            max_tokens=asked.max_tokens,
            stop=asked.stop_sequences,
            thinking_token_budget=budget,
            structured_outputs=asked_of_anthropic(asked.output_config),
            **{ours: getattr(asked, theirs) for theirs, ours in known_to("anthropic").items()},
        )
    except ApiError as error:
        for ours, theirs in (("stop", "stop_sequences"), ("thinking_token_budget", "thinking.budget_tokens")):
            if error.param == ours:
                error.message = error.message.replace(f"{ours} ", f"{theirs} ", 1)
        raise
