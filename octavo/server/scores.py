"""POST /v1/score and /v1/rerank, in vLLM's shapes: texts compared by the cosine of their embeddings."""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from octavo.outputs import RequestOutput
from octavo.pooling_params import PoolingParams
from octavo.server.answer_bodies import Ranked, RankedDocument, RerankResponse, Score, ScoreResponse
from octavo.server.api_errors import bad_field
from octavo.server.completions import one_or_many
from octavo.server.embeddings import answer_with, embedded_form, numbers_of, pooled_usage, pooling_call
from octavo.server.generation import Generation
from octavo.server.protocol import RerankRequest, ScoreRequest
from octavo.server.serving import Serving


async def create_score(request: Request, serving: Serving) -> Response:
    """How alike texts are: one and each of many, or pair by pair."""
    asked = await serving.read(request, ScoreRequest)
    first, second = ([one] if isinstance(one, str) else one for one in (asked.text_1, asked.text_2))
    if len(first) not in (1, len(second)):
        raise bad_field("text_1", f"holds {len(first)} texts, allowed are 1 or {len(second)}, as many as text_2 holds")
    call = await _call(request, serving, asked, ("text_2", second), first)

    def make(outputs: list[RequestOutput]) -> ScoreResponse:
        assert asked.model is not None, "the body was read with a model's name"
        scores = _scores(call, outputs, len(first))
        return ScoreResponse(
            id=call.request_id,
            created=int(time.time()),
            model=asked.model,
            data=[Score(index=index, score=score) for index, score in enumerate(scores)],
            usage=pooled_usage(outputs),
        )

    return await answer_with(request, serving, call, make)


async def rerank(request: Request, serving: Serving) -> Response:
    """Documents in the order of how well they fit a query, the best first."""
    asked = await serving.read(request, RerankRequest)
    if asked.top_n is not None and asked.top_n < 0:
        raise bad_field("top_n", f"is {asked.top_n}, allowed are whole numbers from 1 up, and 0 for all documents")
    call = await _call(request, serving, asked, ("documents", asked.documents), [asked.query])

    def make(outputs: list[RequestOutput]) -> RerankResponse:
        assert asked.model is not None, "the body was read with a model's name"
        scores = _scores(call, outputs, 1)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n or None]
        ranked = [
            Ranked(index=index, document=RankedDocument(text=asked.documents[index]), relevance_score=scores[index])
            for index in order
        ]
        return RerankResponse(id=call.request_id, model=asked.model, usage=pooled_usage(outputs), results=ranked)

    return await answer_with(request, serving, call, make)


async def _call(
    request: Request,
    serving: Serving,
    asked: ScoreRequest | RerankRequest,
    each: tuple[str, list[str]],
    first: list[str],
) -> Generation:
    """The embeddings of `first`, and of the texts of the field that `each` names."""
    form, (name, texts) = embedded_form(serving), each
    one_or_many(name, [*texts], serving.settings.max_prompts_per_request)
    params = PoolingParams(use_activation=True).checked_for(form)
    kind = "score" if isinstance(asked, ScoreRequest) else "rerank"
    return await pooling_call(request, serving, asked, kind, (name, [*first, *texts]), params)


def _scores(call: Generation, outputs: Sequence[RequestOutput], num_first: int) -> list[float]:
    assert isinstance(call.params, PoolingParams), "the call embeds"
    vectors = [numbers_of(output, call.params) for output in outputs]
    first, each = vectors[:num_first], vectors[num_first:]
    first = first * len(each) if num_first == 1 else first
    return [float(one @ other) for one, other in zip(first, each, strict=True)]
