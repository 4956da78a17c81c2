"""POST /api/embed and /api/embeddings: the embeddings of texts, for Ollama's clients."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.kernels.arrays import FloatArray
from octavo.server.api_errors import ApiError
from octavo.server.embeddings import answer_texts, checked_params
from octavo.server.ollama import model_of
from octavo.server.ollama_protocol import OllamaEmbeddingsRequest, OllamaEmbedRequest
from octavo.server.pooling_protocol import EmbeddingRequest
from octavo.server.serving import Serving


class Embeddings(msgspec.Struct, kw_only=True):
    """Durations are nanoseconds; the model stays loaded, so load_duration is 0."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int = 0
    prompt_eval_count: int


class OneEmbedding(msgspec.Struct, kw_only=True):
    embedding: list[float]


async def embed(request: Request, serving: Serving) -> Response:
    """The embeddings of one text or many. What is too long is cut, unless truncate is false."""
    begin = time.perf_counter_ns()
    asked = await serving.read_body(request, OllamaEmbedRequest)
    if asked.input is None or not asked.input:
        raise ApiError(400, "input is missing or empty, allowed is a text, or a list of texts")
    keep = None if asked.truncate is False else -1
    plain = EmbeddingRequest(
        model=await model_of(asked.model, serving), input=[*_texts(asked.input)], truncate_prompt_tokens=keep
    )
    params = checked_params(serving, plain, task="embed", dimensions=asked.dimensions)

    def make(numbers: list[FloatArray], heading: dict[str, Any]) -> Embeddings:
        return Embeddings(
            model=asked.model or "",
            embeddings=[one.tolist() for one in numbers],
            total_duration=time.perf_counter_ns() - begin,
            prompt_eval_count=heading["usage"].prompt_tokens,
        )

    return await answer_texts(request, serving, plain, "embd", params, make)


async def embed_one(request: Request, serving: Serving) -> Response:
    """The embedding of one text: the route that older clients know."""
    asked = await serving.read_body(request, OllamaEmbeddingsRequest)
    if not asked.prompt:
        raise ApiError(400, "prompt is missing or empty, allowed is a text")
    plain = EmbeddingRequest(model=await model_of(asked.model, serving), input=asked.prompt, truncate_prompt_tokens=-1)
    params = checked_params(serving, plain, task="embed")

    def make(numbers: list[FloatArray], heading: dict[str, Any]) -> OneEmbedding:
        return OneEmbedding(embedding=numbers[0].tolist())

    return await answer_texts(request, serving, plain, "embd", params, make)


def _texts(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given
