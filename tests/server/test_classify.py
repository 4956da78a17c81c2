"""POST /classify and /pooling, and scores by a cross-encoder: every field, refusals, and a real engine."""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np
import pytest

from octavo.pooling_params import PooledForm
from tests.server.scripted_embedder import ScriptedEmbedder
from tests.server.scripted_engine import ScriptedEngine, app_of, post

CLASSES = PooledForm(size=3, tasks=("classify",), labels=("good", "bad", "odd"), activation="softmax")
CROSS = PooledForm(size=1, tasks=("classify",), labels=("LABEL_0",), activation="sigmoid")


def asked(path: str, form: PooledForm = CLASSES, *, status: int = 200, factor: float = 1.0, **body: Any) -> Any:
    answer = post(app_of(ScriptedEmbedder(form=form, factor=factor)), path, body)
    assert answer.status == status, answer.body
    return answer.json() if status == 200 else answer.error


def test_a_text_has_a_class() -> None:
    found = asked("/classify", input=[[5, 6, 7], [8]], model="tiny", factor=0.1)
    assert (found["object"], found["model"]) == ("list", "tiny")
    assert found["id"].startswith("classify-")
    numbers = np.exp([[0.3, 0.5, 0.7], [0.1, 0.8, 0.8]])
    for index, (one, wanted) in enumerate(zip(found["data"], numbers, strict=True)):
        assert (one["index"], one["num_classes"]) == (index, 3)
        assert one["probs"] == pytest.approx((wanted / wanted.sum()).tolist(), rel=1e-6)
    assert [one["label"] for one in found["data"]] == ["odd", "bad"]
    assert found["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    plain = asked("/classify", input=[5, 6, 7], use_activation=False)
    assert plain["data"][0]["probs"] == [3, 5, 7]


def test_pooling_has_the_numbers_as_asked() -> None:
    embeds = PooledForm(size=3, normalizes=False)
    tokens = asked("/pooling", embeds, input=[[5, 6], [7]])
    assert [one["data"] for one in tokens["data"]] == [[[5, 5, 5], [6, 6, 6]], [[7, 7, 7]]]
    assert tokens["data"][0]["object"] == "pooling"
    whole = asked("/pooling", embeds, input=[5, 6], task="embed", dimensions=2)
    assert whole["data"][0]["data"] == [2, 5]
    coded = asked("/pooling", embeds, input=[5, 6], encoding_format="base64", dimensions=2)["data"][0]["data"]
    assert np.frombuffer(base64.b64decode(coded), "<f4").tolist() == [5, 5, 6, 6]
    classes = asked("/pooling", input=[5, 6], use_activation=False)
    assert classes["data"][0]["data"] == [2, 5, 6]


def test_a_cross_encoder_scores_pairs() -> None:
    for path in ("/v1/score", "/score"):
        found = asked(path, CROSS, text_1="one", text_2=["one two", "two"], factor=0.25)
        scores = [one["score"] for one in found["data"]]
        assert scores == pytest.approx([1 / (1 + np.exp(-0.75)), 1 / (1 + np.exp(-0.5))], rel=1e-6)
        assert found["usage"]["prompt_tokens"] == 5
    documents = ["two", "one two", "one"]
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        ranked = asked(path, CROSS, query="one", documents=documents, use_activation=False)["results"]
        assert [(one["index"], one["relevance_score"]) for one in ranked] == [(1, 3), (0, 2), (2, 2)]
        assert ranked[0]["document"] == {"text": "one two"}
    assert len(asked("/v1/rerank", CROSS, query="one", documents=documents, top_n=2)["results"]) == 2
    cut = asked("/v1/score", CROSS, text_1="one", text_2="two " * 500, truncate_prompt_tokens=5)
    assert cut["usage"]["prompt_tokens"] == 5


@pytest.mark.parametrize(
    ("path", "form", "body", "message"),
    [
        ("/classify", PooledForm(size=3), {"input": "a"}, "this model embeds texts: allowed is embed, token_embed"),
        ("/v1/embeddings", CLASSES, {"input": "a"}, "the task is 'embed', but this model classifies texts"),
        ("/v1/score", CLASSES, {"text_1": "a", "text_2": "b"}, "is a model of 3 classes, allowed is one that embeds"),
        ("/v1/rerank", CLASSES, {"query": "a", "documents": ["b"]}, "is a model of 3 classes"),
        ("/v1/score", CROSS, {"text_1": ["a", "b"], "text_2": ["a"]}, "holds 2 texts, allowed are 1 or 1"),
        ("/v1/score", CROSS, {"text_1": "a", "text_2": []}, r"is \[\], allowed are"),
        ("/v1/score", CROSS, {"text_1": "a", "text_2": "two " * 500}, "tokens"),
        ("/v1/score", CROSS, {"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 0}, "is 0, allowed are 1 to 128"),
        ("/v1/score", PooledForm(size=3), {"text_1": "a", "text_2": "b", "use_activation": False}, "are cosines"),
        ("/pooling", CLASSES, {"input": "a", "task": "embed"}, "the task is 'embed', but this model classifies"),
        ("/pooling", CLASSES, {"input": "a", "task": "plugin"}, "task is 'plugin', allowed are None, embed"),
        ("/pooling", CLASSES, {"input": "a", "dimensions": 2}, "dimensions is 2, but this model classifies"),
        ("/pooling", CLASSES, {"input": "a", "encoding_format": "bytes"}, "encoding_format is 'bytes', allowed are"),
        ("/v1/completions", CLASSES, {"prompt": "a"}, "this model classifies texts and generates none: call classify"),
    ],
)
def test_what_does_not_fit_is_refused(path: str, form: PooledForm, body: dict[str, Any], message: str) -> None:
    assert re.search(message, asked(path, form, status=400, **body)["message"])


def test_other_models_say_so() -> None:
    for path, body in (("/classify", {"input": "a"}), ("/pooling", {"input": "a"})):
        answer = post(app_of(ScriptedEngine()), path, body)
        assert answer.status == 400
        assert "generates text and embeds none" in answer.error["message"]


def test_the_engine_s_faults_are_errors() -> None:
    answer = post(app_of(ScriptedEmbedder(factor=float("nan"), form=CLASSES)), "/classify", {"input": "a"})
    assert answer.status == 500
    assert "has no class: its numbers are not finite" in answer.error["message"]
    broken = app_of(ScriptedEmbedder(fault="it broke", form=CROSS))
    answer = post(broken, "/score", {"text_1": "a", "text_2": "b"})
    assert (answer.status, "it broke" in answer.error["message"]) == (500, True)
