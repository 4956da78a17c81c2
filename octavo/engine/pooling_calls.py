"""PoolingCalls: the methods of LLM that a model which embeds answers, with vLLM's names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.engine.calls import listed_or_one, priority_list, prompt_list, refuse_unknown, requests_of
from octavo.engine.input import Prompt
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.pooled import embedding
from octavo.engine.progress import Progress
from octavo.engine.turns import EngineTurns, OutputStream
from octavo.errors import InvalidRequestError
from octavo.outputs import (
    EmbeddingOutput,
    EmbeddingRequestOutput,
    RequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from octavo.pooling_params import PoolingParams
from octavo.request import Request
from octavo.shown import shown

Pooled = PoolingParams | Sequence[PoolingParams] | None


class PoolingCalls:
    """A part of LLM."""

    _engine: LLMEngine
    _turns: EngineTurns
    _counter: Any

    def embed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling_params: Pooled = None,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: int | Sequence[int] | None = None,
        **others: Any,
    ) -> list[EmbeddingRequestOutput]:
        """The embedding of every text, in the order of the prompts.

        prompts: as in `generate`. pooling_params: one for all, or one each. others: vLLM's arguments, at values that
        ask for nothing. Raises InvalidRequestError before anything runs if any text cannot be embedded, and
        after it if one failed."""
        if others:
            refuse_unknown(PoolingCalls.embed, others)
        requests = self._pooling_requests(prompts, pooling_params, priority)
        outputs = self._pooled(requests, use_tqdm)
        return [_embedded(request, output) for request, output in zip(requests, outputs, strict=True)]

    def score(
        self,
        data_1: Prompt | Iterable[Prompt],
        data_2: Prompt | Iterable[Prompt],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: int | None = None,
        **others: Any,
    ) -> list[ScoringRequestOutput]:
        """How alike texts are, by the cosine of their embeddings: one text and each of many, or as many pairs as there
        are texts in both. pooling_params, priority: for all. Raises as `embed` does."""
        if others:
            refuse_unknown(PoolingCalls.score, others)
        first, second = prompt_list(data_1), prompt_list(data_2)
        if not first or not second or (len(first) > 1 and len(first) != len(second)):
            raise InvalidRequestError(
                f"data_1 holds {len(first)} texts and data_2 {len(second)}, allowed are one and any number, or as many"
            )
        options: dict[str, Any] = {"use_tqdm": use_tqdm, "priority": priority}
        if not isinstance(asked := pooling_params or PoolingParams(), PoolingParams):
            raise InvalidRequestError(f"pooling_params is {shown(asked)}, allowed are a PoolingParams and None")
        params = replace(asked, use_activation=True)
        found = self.embed([*first, *second], pooling_params=params, **options)
        ones, each = found[: len(first)], found[len(first) :]
        ones = ones * len(each) if len(ones) == 1 else ones
        return [_compared(one, other) for one, other in zip(ones, each, strict=True)]

    def _pooling_requests(self, prompts: object, params: object, priority: object) -> list[Request]:
        many = prompt_list(prompts)
        call = next(self._counter)
        params_each, priorities = _params_list(params, len(many)), priority_list(priority, len(many))
        return requests_of(self._engine.make_request, call, many, params_each, priorities)

    def _pooled(self, requests: list[Request], use_tqdm: bool | Callable[..., Any]) -> list[RequestOutput]:
        done: dict[str, RequestOutput] = {}
        stream = OutputStream(self._turns, requests)
        stats = lambda: self._turns.ask(lambda engine: engine.core.stats())  # noqa: E731
        bar = None if use_tqdm is False else Progress(len(requests), stats, use_tqdm)
        with closing(stream), bar or nullcontext():
            for output in stream:
                done[output.request_id] = output
                if bar is not None:
                    bar.update(output)
        return [done[request.request_id] for request in requests]


def _embedded(request: Request, output: RequestOutput) -> EmbeddingRequestOutput:
    assert request.pooling_params is not None, "the request asks for an embedding"
    numbers = embedding(output, request.pooling_params).tolist()
    token_ids = request.prompt_token_ids
    return EmbeddingRequestOutput(output.request_id, EmbeddingOutput(numbers), token_ids, output.num_cached_tokens)


def _compared(one: EmbeddingRequestOutput, other: EmbeddingRequestOutput) -> ScoringRequestOutput:
    score = float(np.dot(one.outputs.embedding, other.outputs.embedding))
    token_ids = one.prompt_token_ids + other.prompt_token_ids
    num_cached = one.num_cached_tokens + other.num_cached_tokens
    return ScoringRequestOutput(other.request_id, ScoringOutput(score), token_ids, num_cached)


def _params_list(params: object, count: int) -> list[PoolingParams]:
    """One for all, one each, or None for what the model's files say."""
    params = PoolingParams() if params is None else params
    many: list[Any] = [params] * count if isinstance(params, PoolingParams) else listed_or_one(params)
    for one in many:
        if not isinstance(one, PoolingParams):
            raise InvalidRequestError(
                f"pooling_params is {shown(one)}, allowed are a PoolingParams, a list of one each, and None"
            )
    if len(many) != count:
        raise InvalidRequestError(f"pooling_params holds {len(many)} values for {count} prompts, allowed are one each")
    return many
