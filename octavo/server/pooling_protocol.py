"""Bodies and answers of the routes of a model that pools: embeddings, classes, scores and ranks."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from octavo.server.protocol import ModelRequest


class PoolingRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """What calls to a model that embeds or classifies have in common."""

    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    priority: int | None = None
    request_id: str | None = None
    cache_salt: str | None = None


class TextsRequest(PoolingRequest, kw_only=True, forbid_unknown_fields=True):
    """input: a text, token ids, or a list of either. messages: one conversation in its place, as one text by the
    model's chat template, which the four fields below it are about."""

    input: str | list[str | int | list[int]] | None = None
    messages: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    use_activation: bool | None = None


class ClassifyRequest(TextsRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /classify."""


class EmbeddingRequest(TextsRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/embeddings."""

    encoding_format: str | None = None
    dimensions: int | None = None


class NumbersRequest(EmbeddingRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /pooling."""

    task: str | None = None


class ScoreRequest(PoolingRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/score. text_1: one text, or as many as text_2. vLLM has the two sides under other names, too."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None
    use_activation: bool | None = None


class RerankRequest(PoolingRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/rerank."""

    query: str
    documents: list[str]
    top_n: int | None = None
    return_documents: bool | None = None
    use_activation: bool | None = None


class Embedding(msgspec.Struct, kw_only=True):
    """embedding: numbers, or with encoding_format base64 their float32 bytes, least significant first."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class PoolingUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class PooledResponse(msgspec.Struct, kw_only=True):
    """What the answers of a model that pools have beside their data. id, created: vLLM's."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    usage: PoolingUsage


class EmbeddingResponse(PooledResponse, kw_only=True):
    data: list[Embedding]


class Numbers(msgspec.Struct, kw_only=True):
    """data: numbers of a text, or of each of its tokens; with encoding_format base64 their float32 bytes."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float | list[float]] | str


class PoolingResponse(PooledResponse, kw_only=True):
    data: list[Numbers]


class TextClass(msgspec.Struct, kw_only=True):
    """label: the likeliest class. probs: of every class."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassifyResponse(PooledResponse, kw_only=True):
    data: list[TextClass]


class Score(msgspec.Struct, kw_only=True):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(PooledResponse, kw_only=True):
    data: list[Score]


class RankedDocument(msgspec.Struct, kw_only=True):
    text: str


class Ranked(msgspec.Struct, kw_only=True):
    """index: the document's place in the request. document: None if the request wants none."""

    index: int
    document: RankedDocument | None
    relevance_score: float


class RerankResponse(PooledResponse, kw_only=True):
    results: list[Ranked]


#: as in openapi.py: the request's struct, the answer's, and whether it may stream
BODIES: dict[str, tuple[type[msgspec.Struct] | None, type[msgspec.Struct] | None, bool]] = {
    **dict.fromkeys(("/v1/score", "/score"), (ScoreRequest, ScoreResponse, False)),
    **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), (RerankRequest, RerankResponse, False)),
    "/pooling": (NumbersRequest, PoolingResponse, False),
    "/classify": (ClassifyRequest, ClassifyResponse, False),
    "/v1/embeddings": (EmbeddingRequest, EmbeddingResponse, False),
}
