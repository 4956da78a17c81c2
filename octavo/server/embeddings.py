"""POST /v1/embeddings, in OpenAI's shape with vLLM's further fields."""

from __future__ import annotations

import base64
import time
from array import array
from collections.abc import Callable, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.pooled import cut_end, embedding
from octavo.errors import InvalidRequestError
from octavo.kernels.ops import FloatArray
from octavo.outputs import RequestOutput
from octavo.pooling_params import PooledForm, PoolingParams
from octavo.server.answer_bodies import Embedding, EmbeddingResponse, EmbeddingUsage
from octavo.server.api_errors import ApiError, as_api_error, bad_field
from octavo.server.completions import Prompts, one_or_many
from octavo.server.generation import Generation, complete, from_headers
from octavo.server.json_pieces import answer
from octavo.server.prompts import encode_texts
from octavo.server.protocol import EmbeddingRequest, PoolingRequest
from octavo.server.serving import Serving, request_id
from octavo.server.streaming import CLIENT_CLOSED_REQUEST, cancelled_on_disconnect
from octavo.shown import shown

_GENERATES = (
    "this model generates text and embeds none; serve one that embeds, or this one with --runner pooling, and send "
    "prompts to /v1/completions or /v1/chat/completions"
)


async def create_embedding(request: Request, serving: Serving) -> Response:
    """The embeddings of one text or many."""
    asked = await serving.read(request, EmbeddingRequest)
    form = embedded_form(serving)
    if asked.encoding_format not in (None, "float", "base64"):
        raise bad_field("encoding_format", f"is {shown(asked.encoding_format)}, allowed are float and base64")
    given = one_or_many("input", asked.input, serving.settings.max_prompts_per_request)
    call = await pooling_call(request, serving, asked, "embd", ("input", given), _params(asked, form))
    return await answer_with(request, serving, call, lambda outputs: _response(asked, call, outputs))


def embedded_form(serving: Serving) -> PooledForm:
    """Raises ApiError if the model embeds nothing."""
    form = serving.client.model_info.pooled
    if form is None:
        raise ApiError(400, _GENERATES, param="model", code="model_generates")
    return form


async def pooling_call(
    request: Request,
    serving: Serving,
    asked: PoolingRequest,
    kind: str,
    given: tuple[str, Prompts],
    params: PoolingParams,
) -> Generation:
    """kind: the beginning of the call's id. given: the texts, behind the name of their field."""
    return Generation(
        request_id=f"{kind}-{request_id(request, asked.request_id)}",
        prompts=await _token_ids(request, *given, asked, serving),
        params=params,
        priority=asked.priority or 0,
        cache_salt=asked.cache_salt,
        **from_headers(request),
    )


async def answer_with(
    request: Request, serving: Serving, call: Generation, make: Callable[[list[RequestOutput]], msgspec.Struct]
) -> Response:
    """The answer that is made from the call's outputs, unless the client leaves first."""
    assert isinstance(call.params, PoolingParams), "the call embeds"
    async with cancelled_on_disconnect(request.receive):
        outputs = await complete(serving.client, call)
        size = len(outputs) * (call.params.dimensions or 0)
        headers = serving.id_headers(call.request_id.partition("-")[2])
        return await answer(serving.lanes, size, lambda: make(outputs), headers)
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def numbers_of(output: RequestOutput, params: PoolingParams) -> FloatArray:
    """Raises ApiError if the engine failed at the request."""
    try:
        return embedding(output, params)
    except InvalidRequestError as error:
        raise ApiError(500, str(error), code="engine_failure") from None


def pooled_usage(outputs: Sequence[RequestOutput]) -> EmbeddingUsage:
    num_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    return EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)


def _params(asked: EmbeddingRequest, form: PooledForm) -> PoolingParams:
    try:
        return PoolingParams(dimensions=asked.dimensions, use_activation=asked.use_activation).checked_for(form)
    except InvalidRequestError as error:
        raise as_api_error(error) from None


async def _token_ids(
    request: Request, name: str, given: Prompts, asked: PoolingRequest, serving: Serving
) -> list[list[int]]:
    keep, info = asked.truncate_prompt_tokens, serving.client.model_info
    most = info.max_model_len
    if keep is not None and keep != -1 and not 1 <= keep <= most:
        raise bad_field("truncate_prompt_tokens", f"is {keep}, allowed are 1 to {most}, and -1 for as many as fit")
    tokenizer, adds_special = None, asked.add_special_tokens is not False
    if isinstance(given[0], str):
        fits = info if keep is None else None
        ids = await encode_texts(request, serving, given, adds_special, name, fits)
        tokenizer = serving.tokenizer("a text") if adds_special else None
    else:
        ids = given
    if keep is None:
        return ids
    keep = most if keep == -1 else keep
    return [one if len(one) <= keep else cut_end(array("q", one), keep, tokenizer).tolist() for one in ids]


def _response(asked: EmbeddingRequest, call: Generation, outputs: Sequence[RequestOutput]) -> EmbeddingResponse:
    assert asked.model is not None, "the body was read with a model's name"
    assert isinstance(call.params, PoolingParams), "the call embeds"
    params, encoding = call.params, asked.encoding_format
    return EmbeddingResponse(
        id=call.request_id,
        created=int(time.time()),
        model=asked.model,
        data=[_embedding(index, one, params, encoding) for index, one in enumerate(outputs)],
        usage=pooled_usage(outputs),
    )


def _embedding(index: int, output: RequestOutput, params: PoolingParams, encoding: str | None) -> Embedding:
    vector = numbers_of(output, params)
    if encoding == "base64":
        return Embedding(index=index, embedding=base64.b64encode(vector.astype("<f4").tobytes()).decode())
    return Embedding(index=index, embedding=vector.tolist())
