"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients expect them.

message_start ── content_block_start ── ping ── content_block_delta ...
             ── content_block_stop ── message_delta ── message_stop
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.outputs import CompletionOutput, RequestOutput
from octavo.request import ModelInfo
from octavo.sampling_params import SamplingParams, known_to
from octavo.server.api_errors import ApiError, bad_field
from octavo.server.generation import (
    Generation,
    checked_params,
    complete,
    ended_by_server,
    from_headers,
    raise_failure,
    stream,
)
from octavo.server.prompts import check_messages, encode_conversation, room_for_output
from octavo.server.protocol import (
    AnthropicMessage,
    ChatCompletionRequest,
    Content,
    CountTokensRequest,
    MessagesRequest,
)
from octavo.server.response_format import asked_of_anthropic
from octavo.server.responses import AnthropicUsage, CountTokensResponse, MessagesResponse, TextBlock
from octavo.server.serving import Serving, json_response, request_id
from octavo.server.streaming import CLIENT_CLOSED_REQUEST, cancelled_on_disconnect
from octavo.shown import shown

_encode = msgspec.json.Encoder().encode

#: text blocks checked on the event loop; each takes a microsecond
_FEW_BLOCKS = 1024
#: accepted keys of a text block: hints for a cache that needs none here, and a key that answers have
_NO_EFFECT_IN_BLOCKS = frozenset({"cache_control", "citations"})


async def create_message(request: Request, serving: Serving) -> Response:
    """Answer a conversation, for Anthropic's clients."""
    asked = await serving.read(request, MessagesRequest)
    prompt = await _prompt(request, asked, serving, serving.client.model_info)
    params = _params(asked, len(prompt), serving)
    known_as = request_id(request, None)
    generation = Generation(request_id=f"msg_{known_as}", prompts=[prompt], params=params, **from_headers(request))
    message = Message(generation.request_id, asked, serving.client.model_info.max_model_len)
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
    return json_response(CountTokensResponse(input_tokens=len(await _prompt(request, asked, serving, None))))


async def _prompt(request: Request, asked: CountTokensRequest, serving: Serving, fits: ModelInfo | None) -> list[int]:
    """A last message by the assistant begins the answer. fits: the model whose context the prompt must fit."""
    contents = [message.content for message in asked.messages]
    num_blocks = sum(len(one) for one in (*contents, asked.system) if isinstance(one, list))
    if num_blocks > _FEW_BLOCKS:
        conversation = await serving.lanes.run("answers", lambda: _conversation(asked, serving))
    else:
        conversation = _conversation(asked, serving)
    return await encode_conversation(request, serving, conversation, fits)


def _conversation(asked: CountTokensRequest, serving: Serving) -> ChatCompletionRequest:
    messages = [_plain(index, message) for index, message in enumerate(asked.messages)]
    check_messages(messages, serving.settings)
    is_begun = messages[-1]["role"] == "assistant"
    if asked.system is not None:
        messages.insert(0, {"role": "system", "content": _text("system", asked.system)})
    return ChatCompletionRequest(messages=messages, add_generation_prompt=not is_begun, continue_final_message=is_begun)


def _plain(index: int, message: AnthropicMessage) -> dict[str, Any]:
    if message.role not in ("user", "assistant"):
        raise bad_field(
            f"messages[{index}].role", f"is {shown(message.role)}, allowed are user and assistant; see system"
        )
    return {"role": message.role, "content": _text(f"messages[{index}].content", message.content)}


def _text(where: str, content: Content) -> str:
    if isinstance(content, str):
        return content
    for index, block in enumerate(content):
        if block.get("type") != "text" or not isinstance(block.get("text"), str):
            kind = shown(block.get("type"))
            problem = f"is a block of type {kind}, allowed are blocks of type 'text' with a text"
            raise bad_field(f"{where}[{index}]", problem)
        if more := sorted(set(block) - {"type", "text"} - _NO_EFFECT_IN_BLOCKS):
            raise bad_field(f"{where}[{index}]", f"has the key {shown(more[0])}, allowed are type and text")
    return "\n".join(block["text"] for block in content)


def _params(asked: MessagesRequest, num_prompt: int, serving: Serving) -> SamplingParams:
    """Anthropic's clients must set max_tokens without knowing the context, so the context may end an answer; its
    stop_reason then says so."""
    info = serving.client.model_info
    room_for_output(num_prompt, None, info, ("messages", "max_tokens"))
    for name in ("temperature", "top_p"):
        value = getattr(asked, name)
        if value is not None and not 0 <= value <= 1:
            raise bad_field(name, f"is {value}, allowed is 0 to 1")
    try:
        return checked_params(
            info.default_sampling_params,
            serving.settings,
            max_tokens=asked.max_tokens,
            stop=asked.stop_sequences,
            structured_outputs=asked_of_anthropic(asked.output_config),
            **{ours: getattr(asked, theirs) for theirs, ours in known_to("anthropic").items()},
        )
    except ApiError as error:
        error.message = error.message.replace("stop ", "stop_sequences ", 1) if error.param == "stop" else error.message
        raise


class Message:
    """The answer, whole or as streaming.Events. As in chunks.py, constant parts are encoded once."""

    _HEAD = (
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":'
    )
    _TAIL = b"}}\n\n"

    def __init__(self, message_id: str, asked: MessagesRequest, max_model_len: int) -> None:
        self._id = message_id
        self._model = asked.model or ""
        self._max_tokens = asked.max_tokens
        self._max_model_len = max_model_len
        self._num_tokens = 0
        self._has_begun = False

    def whole(self, output: RequestOutput) -> MessagesResponse:
        (completion,) = output.outputs
        self._num_tokens = len(completion.token_ids)
        return self._message(output, [TextBlock(text=completion.text)], *self._ending(completion, output))

    def output(self, output: RequestOutput) -> bytes:
        raise_failure(output)
        parts = [] if self._has_begun else [self._begin(output)]
        for completion in output.outputs:
            self._num_tokens += len(completion.token_ids)
            if completion.text:
                parts += (self._HEAD, _encode(completion.text), self._TAIL)
            if completion.finish_reason is not None:
                parts.append(self._finish(completion, output))
        return b"".join(parts)

    def is_large(self, output: RequestOutput) -> bool:
        return False

    def end(self) -> bytes:
        return _event("message_stop", {})

    def error(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + _encode(error.anthropic_body()) + b"\n\n"

    def _message(
        self,
        output: RequestOutput,
        content: list[TextBlock],
        stop_reason: str | None = None,
        stop_sequence: str | None = None,
    ) -> MessagesResponse:
        return MessagesResponse(
            id=self._id,
            model=self._model,
            content=content,
            stop_reason=stop_reason,
            stop_sequence=stop_sequence,
            usage=self._usage(output),
        )

    def _usage(self, output: RequestOutput) -> AnthropicUsage:
        return AnthropicUsage(
            input_tokens=len(output.prompt_token_ids) - output.num_cached_tokens,
            cache_read_input_tokens=output.num_cached_tokens,
            output_tokens=self._num_tokens,
        )

    def _ending(self, completion: CompletionOutput, output: RequestOutput) -> tuple[str, str | None]:
        """-> stop_reason, stop_sequence."""
        if completion.finish_reason == "stop":
            is_string = isinstance(completion.stop_reason, str)
            return ("stop_sequence", str(completion.stop_reason)) if is_string else ("end_turn", None)
        if completion.finish_reason == "length":
            is_full = len(output.prompt_token_ids) + self._num_tokens >= self._max_model_len
            is_context = is_full and self._num_tokens < self._max_tokens
            return "model_context_window_exceeded" if is_context else "max_tokens", None
        raise ended_by_server()

    def _begin(self, output: RequestOutput) -> bytes:
        self._has_begun = True
        return (
            _event("message_start", {"message": self._message(output, [])})
            + _event("content_block_start", {"index": 0, "content_block": TextBlock(text="")})
            + _event("ping", {})
        )

    def _finish(self, completion: CompletionOutput, output: RequestOutput) -> bytes:
        reason, sequence = self._ending(completion, output)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return _event("content_block_stop", {"index": 0}) + _event(
            "message_delta", {"delta": delta, "usage": self._usage(output)}
        )


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind, **fields}) + b"\n\n"
