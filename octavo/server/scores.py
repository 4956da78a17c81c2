"""POST /v1/score and /v1/rerank, in vLLM's shapes: how well pairs of texts fit.

A cross-encoder reads the two texts of a pair together; other models compare their embeddings by the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from octavo.kernels.arrays import FloatArray
from octavo.pooling_params import PooledForm, PoolingParams
from octavo.server.api_errors import ApiError, bad_field
from octavo.server.completions import one_or_many
from octavo.server.embeddings import answer_with, checked_keep, pooled_form, pooling_call, token_ids
from octavo.server.generation import Generation
from octavo.server.pooling_protocol import (
    Ranked,
    RankedDocument,
    RerankRequest,
    RerankResponse,
    Score,
    ScoreRequest,
    ScoreResponse,
)
from octavo.server.prompts import encode_pairs
from octavo.server.serving import Serving

#: the fields of the two sides, under each of vLLM's names
_SIDES = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))


async def create_score(request: Request, serving: Serving) -> Response:
    """How well texts fit: one and each of many, or pair by pair."""
    asked = await serving.read(request, ScoreRequest)
    (name, first), (other, second) = _two_sides(asked)
    if len(first) not in (1, len(second)):
        raise bad_field(name, f"holds {len(first)} texts, allowed are 1 or {len(second)}, as many as {other} holds")
    form = pooled_form(serving)
    call = await _call(request, serving, asked, first, (other, second))

    def make(numbers: list[FloatArray], heading: dict[str, Any]) -> ScoreResponse:
        scores = _scores(numbers, len(first), form)
        return ScoreResponse(data=[Score(index=index, score=score) for index, score in enumerate(scores)], **heading)

    return await answer_with(request, serving, call, asked, make)


def _two_sides(asked: ScoreRequest) -> list[tuple[str, list[str]]]:
    """The texts of each side, behind the name of their field."""
    fields = dict.fromkeys(name for pair in _SIDES for name in pair)
    names = [name for name in fields if getattr(asked, name) is not None]
    if tuple(names) not in _SIDES:
        allowed = ", ".join(" and ".join(pair) for pair in _SIDES)
        message = f"texts are in {' and '.join(names) or 'no field'}, allowed are two fields: {allowed}"
        raise ApiError(400, message, param=names[0] if names else "text_1", code="missing_required_parameter")
    values = [getattr(asked, name) for name in names]
    return [(name, [one] if isinstance(one, str) else one) for name, one in zip(names, values, strict=True)]


async def rerank(request: Request, serving: Serving) -> Response:
    """Documents in the order of how well they fit a query, the best first."""
    asked = await serving.read(request, RerankRequest)
    if asked.top_n is not None and asked.top_n < 0:
        raise bad_field("top_n", f"is {asked.top_n}, allowed are whole numbers from 1 up, and 0 for all documents")
    form = pooled_form(serving)
    call = await _call(request, serving, asked, [asked.query], ("documents", asked.documents))

    def make(numbers: list[FloatArray], heading: dict[str, Any]) -> RerankResponse:
        scores = _scores(numbers, 1, form)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n or None]
        texts = [None if asked.return_documents is False else RankedDocument(text=one) for one in asked.documents]
        ranked = [Ranked(index=index, document=texts[index], relevance_score=scores[index]) for index in order]
        return RerankResponse(results=ranked, **heading)

    return await answer_with(request, serving, call, asked, make)


async def _call(
    request: Request,
    serving: Serving,
    asked: ScoreRequest | RerankRequest,
    first: list[str],
    each: tuple[str, list[str]],
) -> Generation:
    """each: the second texts, behind the name of their field. A cross-encoder reads pairs; other models embed `first`,
    then the second texts."""
    form, (name, second) = pooled_form(serving), each
    one_or_many(name, [*second], serving.settings.max_prompts_per_request)
    kind = "score" if isinstance(asked, ScoreRequest) else "rerank"
    if form.scores_pairs:
        pairs = list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))
        adds_special = asked.add_special_tokens is not False
        prompts = await encode_pairs(request, serving, pairs, checked_keep(asked, serving), adds_special)
        params = PoolingParams(task="classify", use_activation=asked.use_activation).checked_for(form)
        return pooling_call(request, serving, asked, kind, prompts, params)
    if form.labels:
        problem = f"is a model of {form.size} classes, allowed is one that embeds, or a cross-encoder, with one class"
        raise bad_field("model", problem)
    if asked.use_activation is False:
        raise bad_field("use_activation", "is false, but this model's scores are cosines: leave it out")
    ids = await token_ids(request, name, [*first, *second], asked, serving)
    params = PoolingParams(task="embed", use_activation=True).checked_for(form)
    return pooling_call(request, serving, asked, kind, ids, params)


def _scores(numbers: Sequence[FloatArray], num_first: int, form: PooledForm) -> list[float]:
    if form.scores_pairs:
        return [float(one[0]) for one in numbers]
    first, each = list(numbers[:num_first]), numbers[num_first:]
    first = first * len(each) if num_first == 1 else first
    return [float(one @ other) for one, other in zip(first, each, strict=True)]
