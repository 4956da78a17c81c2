"""POST /v1/embeddings, /pooling and /classify, in OpenAI's and vLLM's shapes."""

from __future__ import annotations

import base64
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.input import Prompt
from octavo.engine.pooled import cut_end, numbers_of
from octavo.errors import InvalidRequestError
from octavo.kernels.arrays import FloatArray
from octavo.outputs import RequestOutput
from octavo.pooling_params import PooledForm, PoolingParams
from octavo.server.api_errors import ApiError, as_api_error, bad_field
from octavo.server.completions import Prompts, one_or_many
from octavo.server.generation import Generation, complete, from_headers
from octavo.server.json_pieces import answer
from octavo.server.pooling_protocol import (
    ClassifyRequest,
    ClassifyResponse,
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    Numbers,
    NumbersRequest,
    PoolingRequest,
    PoolingResponse,
    PoolingUsage,
    TextClass,
    TextsRequest,
)
from octavo.server.prompts import encode_conversation, encode_texts
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.serving import Serving, request_id
from octavo.server.streaming import CLIENT_CLOSED_REQUEST, cancelled_on_disconnect
from octavo.shown import shown

_GENERATES = (
    "this model generates text and embeds none; serve one that embeds, or this one with --runner pooling, and send "
    "prompts to /v1/completions or /v1/chat/completions"
)
#: fields about a conversation, which texts have no use for
_OF_MESSAGES = ("add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs")
#: makes the answer of a call from its numbers, one array for each text
Answers = Callable[[list[FloatArray], dict[str, Any]], msgspec.Struct]


async def create_embedding(request: Request, serving: Serving) -> Response:
    """The embeddings of one text or many."""
    asked = await serving.read(request, EmbeddingRequest)
    write = _writer(asked.encoding_format)
    params = checked_params(serving, asked, task="embed", dimensions=asked.dimensions)

    def make(numbers: list[FloatArray], heading: dict[str, Any]) -> EmbeddingResponse:
        data = [Embedding(index=index, embedding=write(one)) for index, one in enumerate(numbers)]
        return EmbeddingResponse(data=data, **heading)

    return await answer_texts(request, serving, asked, "embd", params, make)


async def pool(request: Request, serving: Serving) -> Response:
    """The model's numbers for one text or many, or for each of their tokens."""
    asked = await serving.read(request, NumbersRequest)
    write = _writer(asked.encoding_format)
    task = asked.task or pooled_form(serving).usual_task
    params = checked_params(serving, asked, task=task, dimensions=asked.dimensions)

    def make(numbers: list[FloatArray], heading: dict[str, Any]) -> PoolingResponse:
        data = [Numbers(index=index, data=write(one)) for index, one in enumerate(numbers)]
        return PoolingResponse(data=data, **heading)

    return await answer_texts(request, serving, asked, "pool", params, make)


async def classify(request: Request, serving: Serving) -> Response:
    """The classes of one text or many, with their probabilities."""
    asked = await serving.read(request, ClassifyRequest)
    labels = pooled_form(serving).labels
    params = checked_params(serving, asked, task="classify")

    def make(numbers: list[FloatArray], heading: dict[str, Any]) -> ClassifyResponse:
        data = [
            TextClass(index=index, label=labels[int(one.argmax())], probs=one.tolist(), num_classes=len(one))
            for index, one in enumerate(numbers)
        ]
        return ClassifyResponse(data=data, **heading)

    return await answer_texts(request, serving, asked, "classify", params, make)


def pooled_form(serving: Serving) -> PooledForm:
    """Raises ApiError if the model generates."""
    form = serving.client.model_info.pooled
    if form is None:
        raise ApiError(400, _GENERATES, param="model", code="model_generates")
    return form


def pooling_call(
    request: Request,
    serving: Serving,
    asked: PoolingRequest,
    kind: str,
    prompts: Sequence[Prompt],
    params: PoolingParams,
) -> Generation:
    """kind: the beginning of the call's id. params: checked."""
    return Generation(
        request_id=f"{kind}-{request_id(request, asked.request_id)}",
        prompts=prompts,
        params=params,
        priority=asked.priority or 0,
        cache_salt=asked.cache_salt,
        lora_request=serving.adapter(asked.model),
        **from_headers(request),
    )


async def answer_with(
    request: Request, serving: Serving, call: Generation, asked: PoolingRequest, make: Answers
) -> Response:
    """The answer that is made from the call's numbers, unless the client leaves first."""
    params, form = call.params, pooled_form(serving)
    assert isinstance(params, PoolingParams), "the call pools"
    async with cancelled_on_disconnect(request.receive):
        outputs = await complete(serving.client, call)
        size = sum(len(output.pooled or b"") for output in outputs) // 4
        headers = serving.id_headers(call.request_id.partition("-")[2])

        def made() -> msgspec.Struct:
            return make([_numbers(output, params, form) for output in outputs], _heading(call, asked, outputs))

        return await answer(serving.lanes, size, made, headers)
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def token_ids(
    request: Request, name: str, given: Prompts, asked: PoolingRequest, serving: Serving
) -> list[list[int]]:
    """Of texts, cut as the call asks. name: the field that has them."""
    keep, info = checked_keep(asked, serving), serving.client.model_info
    tokenizer, adds_special = None, asked.add_special_tokens is not False
    if isinstance(given[0], str):
        ids = await encode_texts(request, serving, given, adds_special, name, info if keep is None else None)
        tokenizer = serving.tokenizer("a text") if adds_special else None
    else:
        ids = given
    if keep is None:
        return ids
    return [one if len(one) <= keep else cut_end(array("q", one), keep, tokenizer).tolist() for one in ids]


def checked_keep(asked: PoolingRequest, serving: Serving) -> int | None:
    """The number of tokens to keep of each text; None: all."""
    keep, most = asked.truncate_prompt_tokens, serving.client.model_info.max_model_len
    if keep is not None and keep != -1 and not 1 <= keep <= most:
        raise bad_field("truncate_prompt_tokens", f"is {keep}, allowed are 1 to {most}, and -1 for as many as fit")
    return most if keep == -1 else keep


async def answer_texts(
    request: Request, serving: Serving, asked: TextsRequest, kind: str, params: PoolingParams, make: Answers
) -> Response:
    ids = await _token_ids(request, serving, asked)
    return await answer_with(request, serving, pooling_call(request, serving, asked, kind, ids, params), asked, make)


async def _token_ids(request: Request, serving: Serving, asked: TextsRequest) -> list[list[int]]:
    """Of the texts, or of the conversation."""
    unused = [name for name in _OF_MESSAGES if getattr(asked, name) is not None]
    if asked.messages is None:
        if unused:
            raise bad_field(unused[0], "is set and messages is not, allowed is both or neither")
        if asked.input is None:
            raise bad_field("input", "is missing, allowed is a text, texts or token ids; or messages in its place")
        given = one_or_many("input", asked.input, serving.settings.max_prompts_per_request)
        return await token_ids(request, "input", given, asked, serving)
    if asked.input is not None:
        raise bad_field("messages", "is set, and so is input, allowed is one of the two")
    keep, info = checked_keep(asked, serving), serving.client.model_info
    chat = ChatCompletionRequest(
        messages=asked.messages,
        add_special_tokens=asked.add_special_tokens,
        add_generation_prompt=bool(asked.add_generation_prompt),
        **{name: getattr(asked, name) for name in _OF_MESSAGES[1:]},
    )
    ids = await encode_conversation(request, serving, chat, info if keep is None else None, pools=True)
    if keep is None and len(ids) > info.max_model_len:
        problem = f"has {len(ids)} tokens, allowed are {info.max_model_len}: shorten it or set truncate_prompt_tokens"
        raise bad_field("messages", problem, "context_length_exceeded")
    return [ids if keep is None else ids[:keep]]


def checked_params(serving: Serving, asked: TextsRequest, **more: Any) -> PoolingParams:
    form = pooled_form(serving)
    try:
        return PoolingParams(use_activation=asked.use_activation, **more).checked_for(form)
    except InvalidRequestError as error:
        raise as_api_error(error) from None


def _numbers(output: RequestOutput, params: PoolingParams, form: PooledForm) -> FloatArray:
    """Raises ApiError if the engine failed at the request."""
    try:
        return numbers_of(output, params, form)
    except InvalidRequestError as error:
        raise ApiError(500, str(error), code="engine_failure") from None


def _heading(call: Generation, asked: PoolingRequest, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """What all answers have beside their data."""
    num_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    usage = PoolingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)
    return {"id": call.request_id, "created": int(time.time()), "model": asked.model, "usage": usage}


def _writer(encoding: str | None) -> Callable[[FloatArray], Any]:
    """Numbers as the call wants them."""
    if encoding not in (None, "float", "base64"):
        raise bad_field("encoding_format", f"is {shown(encoding)}, allowed are float and base64")
    if encoding == "base64":
        return lambda numbers: base64.b64encode(numbers.astype("<f4").tobytes()).decode()
    return lambda numbers: numbers.tolist()
