"""POST /v1/embeddings: every field, refusals, and the openai client with a real engine."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import AsyncLLM, LoRARequest
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings
from tests.server.scripted_embedder import ScriptedEmbedder
from tests.server.scripted_engine import ScriptedEngine, app_of, call, post, without_template
from tests.tiny_embedders import expected, make_tiny_embedder

PATH = "/v1/embeddings"


def embed(**body: Any) -> Any:
    answer = post(app_of(ScriptedEmbedder()), PATH, body)
    assert answer.status == 200, answer.body
    return answer.json()


def refused(engine: ScriptedEngine | None = None, path: str = PATH, **body: Any) -> dict[str, Any]:
    answer = post(app_of(engine or ScriptedEmbedder()), path, body)
    assert answer.status == 400, answer.body
    return answer.error


def test_texts_and_token_ids() -> None:
    found = embed(input=[[5, 6, 7], [8]], model="tiny")
    assert found["object"] == "list"
    assert found["model"] == "tiny"
    assert [one["embedding"] for one in found["data"]] == [[3, 5, 7], [1, 8, 8]]
    assert [one["index"] for one in found["data"]] == [0, 1]
    assert found["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert embed(input=[5, 6])["data"][0]["embedding"] == [2, 5, 6]
    assert embed(input="one two")["data"][0]["embedding"][0] == 2
    assert len(embed(input=["one", "two"])["data"]) == 2


@pytest.mark.parametrize("path", [PATH, "/pooling", "/score"])
def test_an_adapters_name_is_a_model(path: str) -> None:
    engine = ScriptedEmbedder(adapters=(LoRARequest("law", 1, "/law"),))
    texts = {"text_1": "one", "text_2": "two"} if path == "/score" else {"input": "one"}
    for model in ("law", "tiny"):
        assert post(app_of(engine), path, {"model": model, **texts}).status == 200
    assert [one.lora_request and one.lora_request.lora_name for one in engine.requests[:: len(texts)]] == ["law", None]


def test_base64_has_the_same_numbers() -> None:
    text = embed(input=[5, 6], encoding_format="base64")["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == [2, 5, 6]
    assert embed(input=[5, 6], encoding_format="float")["data"][0]["embedding"] == [2, 5, 6]
    asked = {"encoding_format": "base64", "embed_dtype": "float32", "endianness": "little"}
    assert embed(input=[5, 6], **asked)["data"][0]["embedding"] == text


def test_dimensions_and_use_activation() -> None:
    assert embed(input=[5, 6], dimensions=2)["data"][0]["embedding"] == [2, 5]
    normed = embed(input=[5, 6], dimensions=2, use_activation=True)["data"][0]["embedding"]
    np.testing.assert_allclose(normed, np.array([2, 5]) / np.sqrt(29), rtol=1e-6)


def test_long_texts_are_cut_if_asked() -> None:
    long = list(range(200))
    assert "200 tokens, allowed are 128" in refused(input=long)["message"]
    assert "8000 tokens, allowed are 128" in refused(input="a1" * 4000)["message"]
    assert embed(input=long, truncate_prompt_tokens=-1)["data"][0]["embedding"] == [128, 0, 127]
    assert embed(input=[long, [5]], truncate_prompt_tokens=7)["usage"]["prompt_tokens"] == 8
    assert embed(input=" one" * 999, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"] == 128
    assert embed(input=list(range(128)))["usage"]["prompt_tokens"] == 128


def test_a_conversation_is_one_text() -> None:
    engine = ScriptedEmbedder()
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    tokenizer = engine.get_tokenizer()
    assert tokenizer is not None
    for begins in (None, True):
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=bool(begins))
        ids = tokenizer.encode(text, add_special_tokens=False)
        for path in (PATH, "/pooling"):
            answer = post(app_of(engine), path, {"messages": chat, "add_generation_prompt": begins})
            assert answer.json()["usage"]["prompt_tokens"] == len(ids), answer.body
        found = embed(messages=chat, add_generation_prompt=begins)["data"][0]["embedding"]
        assert found == embed(input=ids)["data"][0]["embedding"]
    long = [{"role": "user", "content": " one" * 300}]
    assert re.search("has .* tokens, allowed are 128", refused(messages=long)["message"])
    assert embed(messages=long, truncate_prompt_tokens=9)["usage"]["prompt_tokens"] == 9
    assert "is missing, allowed is a text" in refused()["message"]
    assert "Send the text as input" in refused(without_template(ScriptedEmbedder()), messages=chat)["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"input": "a", "chat_template_kwargs": {}}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}], "chat_template": "x"}, "chat_template"),
        ({"input": []}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"input": ["a"] * 10_000}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "embed_dtype": "float16"}, "embed_dtype"),
        ({"input": "a", "normalize": True}, "normalize"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "a", "truncate_prompt_tokens": 129}, "truncate_prompt_tokens"),
        ({"input": "a", "unknown": 1}, "unknown"),
        ({}, "input"),
    ],
)
def test_bad_fields_are_named(body: dict[str, Any], param: str) -> None:
    assert refused(**body)["param"] == param


def test_scores_are_cosines() -> None:
    app = app_of(ScriptedEmbedder())
    vectors = {text: np.array(embed(input=text)["data"][0]["embedding"]) for text in (" one", " two two", " three one")}
    one, *others = vectors.values()
    cosines = [float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) for other in others]
    texts = list(vectors)
    sides = ("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items")
    for path, (first, second) in (("/score", sides[0]), *(("/v1/score", pair) for pair in sides)):
        found = post(app, path, {first: texts[0], second: texts[1:]}).json()
        assert [one["score"] for one in found["data"]] == pytest.approx(cosines, rel=1e-6)
        assert found["usage"]["total_tokens"] == 5
    found = post(app, "/v1/score", {"text_1": texts[1:], "text_2": texts[1:]}).json()
    assert [one["score"] for one in found["data"]] == pytest.approx([1, 1])
    ranked = post(app, "/v1/rerank", {"query": "a", "documents": ["b"], "return_documents": False}).json()["results"]
    assert ranked[0]["document"] is None
    for top_n, count in ((None, 2), (0, 2), (1, 1)):
        asked = {"query": texts[0], "documents": texts[1:], "top_n": top_n}
        results = post(app, "/v1/rerank", asked).json()["results"]
        order = sorted((0, 1), key=lambda index: -cosines[index])[:count]
        assert [one["index"] for one in results] == order
        assert [one["document"]["text"] for one in results] == [texts[1:][index] for index in order]
        assert [one["relevance_score"] for one in results] == pytest.approx(
            [cosines[index] for index in order], rel=1e-6
        )


def test_what_cannot_be_compared_is_refused() -> None:
    wrong = refused(path="/v1/score", text_1=["a", "b"], text_2=["a", "b", "c"])
    assert "holds 2 texts, allowed are 1 or 3" in wrong["message"]
    assert refused(path="/v1/score", text_1="a", text_2=[])["param"] == "text_2"
    for given in ({}, {"queries": "a"}, {"text_1": "a", "data_2": "b"}, {"text_1": "a", "text_2": "b", "data_1": "c"}):
        missing = refused(path="/v1/score", **given)
        assert (
            f"texts are in {' and '.join(given) or 'no field'}, allowed are two fields: text_1 and"
            in missing["message"]
        )
    assert refused(path="/v1/rerank", query="a", documents=[])["param"] == "documents"
    assert refused(path="/v1/rerank", query="a", documents=["b"], top_n=-1)["param"] == "top_n"
    assert "embeds none" in refused(ScriptedEngine(), "/v1/rerank", query="a", documents=["b"])["message"]


def test_the_other_kind_of_model_is_named() -> None:
    assert "dimensions is 4, allowed is 1 to 3" in refused(input="a", dimensions=4)["message"]
    assert "generates text and embeds none" in refused(ScriptedEngine(), input="a")["message"]
    assert "embeds texts and generates none" in refused(path="/v1/completions", prompt="a")["message"]
    chat = [{"role": "user", "content": "a"}]
    for path in ("/v1/chat/completions", "/v1/messages"):
        assert "embeds texts and generates none" in refused(path=path, messages=chat, max_tokens=2)["message"]


def test_a_fault_of_the_engine_is_not_an_answer() -> None:
    answer = post(app_of(ScriptedEmbedder(fault="it broke")), PATH, {"input": "a"})
    assert answer.status == 500
    assert "it broke" in answer.error["message"]
    for path, body in (("/v1/rerank", {"query": "a", "documents": ["b"]}), (PATH, {"input": "a"})):
        answer = post(app_of(ScriptedEmbedder(factor=float("nan"))), path, body)
        assert answer.status == 500
        assert "its numbers are not finite" in answer.error["message"]


def test_a_real_engine_gives_what_transformers_gives(tmp_path: Path, one_torch_thread: None) -> None:
    folder = make_tiny_embedder("bert", tmp_path, "MEAN")
    llm = AsyncLLM(str(folder), backend="cpu", num_threads=1, skip_tokenizer_init=True)
    try:
        app = create_app(llm, ServerSettings(served_model_name=("tiny",)))
        texts = [[5, 6, 7], list(range(3, 60))]

        async def ask() -> list[Any]:
            body = f'{{"input": {texts}}}'.encode()
            headers = {"content-type": "application/json"}
            return await asyncio.gather(*(call(app, "POST", PATH, body, headers) for _ in range(4)))

        for answer in asyncio.run(ask()):
            for text, one in zip(texts, answer.json()["data"], strict=True):
                np.testing.assert_allclose(one["embedding"], expected(folder, "MEAN", text), rtol=1e-4, atol=2e-5)
    finally:
        llm.shutdown()
