"""PoolingCalls: the methods of LLM that a model which embeds or classifies answers, with vLLM's names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.engine.calls import listed_or_one, lora_list, priority_list, prompt_list, refuse_unknown, requests_of
from octavo.engine.input import Prompt
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.pooled import numbers_of, pair_prompt
from octavo.errors import InvalidRequestError
from octavo.lora_request import LoRARequest
from octavo.outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from octavo.pooling_params import PooledForm, PoolingParams, PoolingTask
from octavo.request import Request
from octavo.shown import shown

Adapters = LoRARequest | Sequence[LoRARequest | None] | None
Pooled = PoolingParams | Sequence[PoolingParams] | None


class PoolingCalls:
    """A part of LLM."""

    _engine: LLMEngine
    _counter: Any
    _finished: Callable[[list[Request], bool | Callable[..., Any]], list[RequestOutput]]

    def embed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling_params: Pooled = None,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: int | Sequence[int] | None = None,
        lora_request: Adapters = None,
        **others: Any,
    ) -> list[EmbeddingRequestOutput]:
        """The embedding of every text, in the order of the prompts.

        prompts, lora_request: as in `generate`. pooling_params: one for all, or one each. others: vLLM's arguments, at
        values that ask for nothing. Raises InvalidRequestError before anything runs if any text cannot be embedded, and
        after it if one failed."""
        if others:
            refuse_unknown(PoolingCalls.embed, others)
        found = self._pooled(prompts, pooling_params, priority, use_tqdm, "embed", lora_request)
        return [_as(EmbeddingRequestOutput, one, EmbeddingOutput(one.outputs.data.tolist())) for one in found]

    def classify(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling_params: Pooled = None,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: int | Sequence[int] | None = None,
        lora_request: Adapters = None,
        **others: Any,
    ) -> list[ClassificationRequestOutput]:
        """The probability of every class, for every text. Arguments and errors are those of `embed`."""
        if others:
            refuse_unknown(PoolingCalls.classify, others)
        found = self._pooled(prompts, pooling_params, priority, use_tqdm, "classify", lora_request)
        return [_as(ClassificationRequestOutput, one, ClassificationOutput(one.outputs.data.tolist())) for one in found]

    def encode(
        self,
        prompts: Prompt | Iterable[Prompt],
        pooling_params: Pooled = None,
        *,
        pooling_task: PoolingTask | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: int | Sequence[int] | None = None,
        lora_request: Adapters = None,
        **others: Any,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """The model's numbers for every text, or with `token_embed` and `token_classify` for each of its tokens.
        pooling_task: must be named, here or in pooling_params. Otherwise as `embed`."""
        if others:
            refuse_unknown(PoolingCalls.encode, others)
        return self._pooled(prompts, pooling_params, priority, use_tqdm, pooling_task, lora_request, is_named=True)

    def score(
        self,
        data_1: Prompt | Iterable[Prompt],
        data_2: Prompt | Iterable[Prompt],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: int | None = None,
        lora_request: LoRARequest | None = None,
        **others: Any,
    ) -> list[ScoringRequestOutput]:
        """How well texts fit: one text and each of many, or as many pairs as there are texts in both. A cross-encoder
        reads both texts of a pair together; other models compare their embeddings by the cosine. pooling_params,
        priority, lora_request: for all. Raises as `embed` does."""
        if others:
            refuse_unknown(PoolingCalls.score, others)
        first, second = prompt_list(data_1), prompt_list(data_2)
        if not first or not second or (len(first) > 1 and len(first) != len(second)):
            raise InvalidRequestError(
                f"data_1 holds {len(first)} texts and data_2 {len(second)}, allowed are one and any number, or as many"
            )
        if not isinstance(asked := pooling_params or PoolingParams(), PoolingParams):
            raise InvalidRequestError(f"pooling_params is {shown(asked)}, allowed are a PoolingParams and None")
        options: dict[str, Any] = {"use_tqdm": use_tqdm, "priority": priority, "lora_request": lora_request}
        form = self._engine.limits.pooled
        if form is not None and form.scores_pairs:
            pairs = self._pairs(first * len(second) if len(first) == 1 else first, second, asked)
            read = self.classify(pairs, pooling_params=replace(asked, truncate_prompt_tokens=None), **options)
            return [_as(ScoringRequestOutput, one, ScoringOutput(one.outputs.probs[0])) for one in read]
        found = self.embed([*first, *second], pooling_params=replace(asked, use_activation=True), **options)
        ones, each = found[: len(first)], found[len(first) :]
        ones = ones * len(each) if len(ones) == 1 else ones
        return [_compared(one, other) for one, other in zip(ones, each, strict=True)]

    def get_supported_tasks(self) -> tuple[str, ...]:
        """What the model does: "generate", or tasks of pooling."""
        form = self._engine.limits.pooled
        return ("generate",) if form is None else form.tasks

    def _pairs(self, first: list[Prompt], second: list[Prompt], asked: PoolingParams) -> list[Prompt]:
        tokenizer = self._engine.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("the tokenizer joins the texts of a pair, but skip_tokenizer_init=True")
        pairs: list[Prompt] = []
        for one, other in zip(first, second, strict=True):
            if not isinstance(one, str) or not isinstance(other, str):
                wrong = other if isinstance(one, str) else one
                raise InvalidRequestError(f"one of two texts is {shown(wrong)}, allowed is text: a pair is read as one")
            pairs.append(pair_prompt(tokenizer, (one, other), asked.truncate_prompt_tokens, self._engine.limits))
        return pairs

    def _pooled(
        self,
        prompts: object,
        params: object,
        priority: object,
        use_tqdm: bool | Callable[..., Any],
        task: PoolingTask | None,
        lora_request: Adapters,
        *,
        is_named: bool = False,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """task: what the call is for. is_named: where it may be named by the params instead."""
        many = prompt_list(prompts)
        call = next(self._counter)
        params_each = [_for_task(one, task, is_named=is_named) for one in _params_list(params, len(many))]
        priorities = priority_list(priority, len(many))
        adapters = () if lora_request is None else lora_list(lora_request, len(many))
        requests = requests_of(self._engine.make_request, call, many, params_each, priorities, adapters)
        form, outputs = self._engine.limits.pooled, self._finished(requests, use_tqdm)
        assert form is not None or not requests, "other models take no such requests"
        return [_result(*each, form) for each in zip(requests, outputs, strict=True)] if form else []


def _for_task(params: PoolingParams, task: PoolingTask | None, *, is_named: bool) -> PoolingParams:
    if task is None and params.task is None and is_named:
        raise InvalidRequestError(
            "pooling_task is None, allowed are embed, classify, token_embed and token_classify; get_supported_tasks "
            "says which the model has"
        )
    if task is not None and params.task not in (None, task):
        raise InvalidRequestError(f"the task of pooling_params is {params.task!r}, but the call is for {task!r}")
    return params if task is None else replace(params, task=task)


def _result(request: Request, output: RequestOutput, form: PooledForm) -> PoolingRequestOutput[PoolingOutput]:
    assert request.pooling_params is not None, "the request asks for numbers"
    numbers, token_ids = numbers_of(output, request.pooling_params, form), request.prompt_token_ids
    return PoolingRequestOutput(output.request_id, PoolingOutput(numbers), token_ids, output.num_cached_tokens)


def _as(kind: Callable[..., Any], one: PoolingRequestOutput[Any], outputs: object) -> Any:
    return kind(one.request_id, outputs, one.prompt_token_ids, one.num_cached_tokens)


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
