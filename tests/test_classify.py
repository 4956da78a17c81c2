"""LLM.classify, encode and score with heads for classes, against transformers; and what they refuse."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM, ConfigError, InvalidRequestError, ModelLoadError, PoolingParams
from octavo.config import ModelConfig
from octavo.errors import OctavoError
from octavo.kernels.device import Device
from octavo.models.loader import open_checkpoint
from tests.models.mutations import mutated_json
from tests.test_embeddings import engine, texts_of
from tests.tiny_embedders import expected_logits, make_tiny_classifier, make_tiny_embedder, write_tokenizer

Classifier = Callable[..., Path]
LENS = (1, 2, 16, 33, 150)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, one_torch_thread: None) -> Classifier:
    made: dict[Any, Path] = {}

    def get(name: str, **options: Any) -> Path:
        key = name, tuple(options.items())
        if key not in made:
            made[key] = make_tiny_classifier(name, tmp_path_factory.mktemp("classifier") / name, **options)
        return made[key]

    return get


def softmax(logits: Any) -> Any:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-logits))


def check_classes(folder: Path, llm: LLM) -> None:
    texts = texts_of(0, LENS)
    outputs = llm.classify(texts, use_tqdm=False)
    for text, output in zip(texts, outputs, strict=True):
        assert output.prompt_token_ids == text
        assert output.outputs.num_classes == 3
        np.testing.assert_allclose(output.outputs.probs, softmax(expected_logits(folder, text)), rtol=1e-4, atol=2e-5)
    plain = PoolingParams(use_activation=False)
    (one,) = llm.classify([texts[-1]], pooling_params=plain, use_tqdm=False)
    np.testing.assert_allclose(one.outputs.probs, expected_logits(folder, texts[-1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "mpnet", "modernbert", "qwen2", "qwen3", "llama"])
def test_heads_for_texts_agree_with_transformers(classifier: Classifier, name: str) -> None:
    folder = classifier(name)
    with engine(folder, "cpu", max_num_batched_tokens=200, max_num_seqs=3, max_model_len=150) as llm:
        assert llm.get_supported_tasks() == ("classify",)
        check_classes(folder, llm)


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "modernbert", "qwen3"])
def test_heads_for_tokens_agree_with_transformers(classifier: Classifier, name: str) -> None:
    folder, texts = classifier(name, of_tokens=True), texts_of(1, LENS)
    with engine(folder, "cpu", max_num_batched_tokens=200, max_num_seqs=3, max_model_len=150) as llm:
        assert llm.get_supported_tasks() == ("token_classify",)
        for text, output in zip(texts, llm.encode(texts, pooling_task="token_classify", use_tqdm=False), strict=True):
            assert output.outputs.data.shape == (len(text), 3)
            wanted = softmax(expected_logits(folder, text, of_tokens=True))
            np.testing.assert_allclose(output.outputs.data, wanted, rtol=1e-4, atol=2e-5)
        with pytest.raises(
            InvalidRequestError, match=r"the task is 'classify', but this model classifies the tokens of"
        ):
            llm.classify([[5]])


def test_a_head_on_the_reference_backend(classifier: Classifier, backend: Device) -> None:
    folder = classifier("bert")
    with engine(folder, backend) as llm:
        check_classes(folder, llm)


def test_modernbert_s_file_says_what_its_head_reads(tmp_path: Path, one_torch_thread: None) -> None:
    changes = {"classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True, "attention_bias": True}
    folder = make_tiny_classifier("modernbert", tmp_path, mlp_bias=True, classifier_activation="relu", **changes)
    with engine(folder, "cpu") as llm:
        check_classes(folder, llm)


def test_company_changes_no_bit(classifier: Classifier) -> None:
    texts = texts_of(4, LENS)
    with engine(classifier("bert"), "cpu") as llm:
        together = [one.outputs.probs for one in llm.classify(texts, use_tqdm=False)]
        assert together == [llm.classify([text], use_tqdm=False)[0].outputs.probs for text in texts]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"num_labels": 1}, sigmoid),
        (
            {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.Identity"}},
            lambda x: x,
        ),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, sigmoid),
        ({"problem_type": "multi_label_classification"}, sigmoid),
        ({"problem_type": "regression"}, lambda x: x),
    ],
)
def test_the_file_says_what_makes_probabilities(
    tmp_path: Path, one_torch_thread: None, changes: dict[str, Any], wanted: Callable[[Any], Any]
) -> None:
    folder, text = make_tiny_classifier("bert", tmp_path, **changes), [5, 6, 7]
    with engine(folder, "cpu") as llm:
        (found,) = llm.classify([text], use_tqdm=False)
        np.testing.assert_allclose(found.outputs.probs, wanted(expected_logits(folder, text)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "xlm-roberta"])
def test_a_cross_encoder_reads_pairs(tmp_path: Path, one_torch_thread: None, name: str) -> None:
    """Only BERT's texts have types of their own."""
    types = 2 if name == "bert" else 1
    folder = make_tiny_classifier(name, tmp_path, num_labels=1, type_vocab_size=types, pad_token_id=0)
    write_tokenizer(folder)
    query, documents = "w5 w6", ["w7 w8 w9", "w10", "w11 " * 40]
    pairs = [([1, 5, 6, 2, *ids, 2], [0] * 4 + [1] * (len(ids) + 1)) for ids in ([7, 8, 9], [10], [11] * 40)]
    with LLM(str(folder), backend="cpu", num_threads=1, max_model_len=100) as llm:
        found = llm.score(query, documents, use_tqdm=False)
        for output, (ids, kinds) in zip(found, pairs, strict=True):
            assert output.prompt_token_ids == ids
            wanted = sigmoid(expected_logits(folder, ids, kinds if name == "bert" else None))[0]
            assert output.outputs.score == pytest.approx(float(wanted), rel=1e-4, abs=2e-5)
        assert [one.outputs.score for one in llm.score([query] * 3, documents)] == [one.outputs.score for one in found]
        cut = llm.score(query, documents[2], pooling_params=PoolingParams(truncate_prompt_tokens=8))[0]
        assert cut.prompt_token_ids == [1, 5, 6, 2, 11, 11, 11, 2]
        with pytest.raises(InvalidRequestError, match=r"is 5, which leaves nothing of the second text: .* 6 or more"):
            llm.score(query, documents[2], pooling_params=PoolingParams(truncate_prompt_tokens=5))
        with pytest.raises(InvalidRequestError, match="allowed is text: a pair is read as one"):
            llm.score([[5, 6]], [[7]])
        with pytest.raises(InvalidRequestError, match="102 tokens, allowed are 100"):
            llm.score("w5", "w6 " * 98)
        with pytest.raises(InvalidRequestError, match="the task is 'embed', but this model classifies texts"):
            llm.embed("w5")


def test_types_come_with_token_ids_too(classifier: Classifier) -> None:
    folder, ids, types = classifier("bert"), [1, 5, 2, 7, 2], [0, 0, 0, 1, 1]
    with engine(folder, "cpu") as llm:
        (found,) = llm.classify({"prompt_token_ids": ids, "token_type_ids": types}, use_tqdm=False)
        wanted = softmax(expected_logits(folder, ids, types))
        np.testing.assert_allclose(found.outputs.probs, wanted, rtol=1e-4, atol=2e-5)
        for wrong in ([0, 1], [1] * 5, [0, 1, 0, 1, 1], "00011", 5, [0, 0, 0, 1, 2]):
            with pytest.raises(InvalidRequestError, match=r"token_type_ids is .*, allowed is a 0 for each"):
                llm.classify({"prompt_token_ids": ids, "token_type_ids": wrong})
    with engine(classifier("qwen3"), "cpu") as llm, pytest.raises(InvalidRequestError, match="leave them out"):
        llm.classify({"prompt_token_ids": ids, "token_type_ids": types})


def test_encode_gives_the_numbers_of_each_token(tmp_path: Path, one_torch_thread: None) -> None:
    folder, text = make_tiny_embedder("bert", tmp_path, "MEAN"), list(range(3, 40))
    with engine(folder, "cpu") as llm:
        assert llm.get_supported_tasks() == ("embed", "token_embed")
        asked = PoolingParams(task="token_embed", use_activation=False)
        (tokens,) = llm.encode([text], asked, use_tqdm=False)
        assert tokens.outputs.data.shape == (len(text), 48)
        mean = tokens.outputs.data.mean(0)
        (whole,) = llm.encode([text], pooling_task="embed", use_tqdm=False)
        np.testing.assert_allclose(whole.outputs.data, mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6)
        (cut,) = llm.encode([text], PoolingParams(dimensions=7), pooling_task="token_embed", use_tqdm=False)
        np.testing.assert_allclose(np.linalg.norm(cut.outputs.data, axis=1), 1, rtol=1e-5)
        with pytest.raises(InvalidRequestError, match="pooling_task is None, allowed are embed"):
            llm.encode([text])
        with pytest.raises(
            InvalidRequestError, match="the task of pooling_params is 'token_embed', but the call is for"
        ):
            llm.encode([text], asked, pooling_task="embed")
        with pytest.raises(InvalidRequestError, match="task is 'plugin', allowed are None, embed"):
            PoolingParams(task="plugin")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="the task is 'classify', but this model embeds texts"):
            llm.classify([text])


def test_pooler_config_and_convert_choose(classifier: Classifier, tmp_path: Path, one_torch_thread: None) -> None:
    text = [5, 6, 7, 8]
    folder = make_tiny_embedder("bert", tmp_path, "CLS")
    with engine(folder, "cpu", pooler_config={"pooling_type": "MEAN", "use_activation": False}) as llm:
        (found,) = llm.embed([text], use_tqdm=False)
        tokens = llm.encode([text], PoolingParams(task="token_embed"), use_tqdm=False)[0].outputs.data
    np.testing.assert_allclose(found.outputs.embedding, tokens.mean(0), rtol=1e-4, atol=1e-5)
    with engine(classifier("bert"), "cpu", convert="embed") as llm:
        assert llm.get_supported_tasks() == ("embed", "token_embed")
        assert len(llm.embed([text], use_tqdm=False)[0].outputs.embedding) == 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convert": "classify"}, "convert is 'classify', but .* has no head for classes"),
        ({"runner": "generate", "convert": "embed"}, "runner is 'generate' and convert 'embed', allowed are"),
        ({"pooler_config": "{"}, "pooler_config is '{', which is not JSON"),
        ({"pooler_config": "[]"}, r"pooler_config is '\[\]', allowed is an object"),
        ({"pooler_config": {"pooling_type": "MAX"}}, r"pooling type is \['MAX'\], allowed is one of CLS, LAST, MEAN"),
        ({"pooler_config": {"pooling_type": 5}}, "pooler_config's pooling_type is 5, allowed: a text"),
        ({"pooler_config": {"normalize": "yes"}}, "normalize is 'yes', allowed: true and false"),
        ({"pooler_config": {"pool_type": "CLS"}}, "it has 'pool_type'; did you mean"),
        ({"pooler_config": {"normalize": True, "softmax": False}}, "says both yes and no"),
        ({"pooler_config": 5}, "pooler_config is 5"),
        ({"convert": "reward"}, "convert is 'reward', allowed are 'auto', 'none', 'embed' and 'classify'"),
    ],
)
def test_options_that_fit_no_model(embedder_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine(embedder_folder, "cpu", **options)


@pytest.fixture(scope="module")
def embedder_folder(tmp_path_factory: pytest.TempPathFactory, one_torch_thread: None) -> Path:
    return make_tiny_embedder("bert", tmp_path_factory.mktemp("embedder"))


def test_a_classifier_cannot_generate(classifier: Classifier) -> None:
    with pytest.raises(ConfigError, match="has a head for classes and no LM head"):
        engine(classifier("qwen3"), "cpu", runner="generate")


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert"])
def test_hostile_configurations_are_read_or_refused(classifier: Classifier, tmp_path: Path, name: str) -> None:
    rng, folder, num_read = random.Random(0), classifier(name), 0
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    for _ in range(80):
        (tmp_path / "config.json").write_bytes(mutated_json(rng, config))
        message = ""
        try:
            open_checkpoint(ModelConfig(model=str(tmp_path)))
            num_read += 1
        except OctavoError as error:
            message = str(error)
        assert len(message) < 4000, message
    assert 10 < num_read < 80


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {}}, "id2label is {}; allowed: a name for each of 0, 1, 2"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label is .*; allowed: a name for each"),
        ({"id2label": {"0": 5}}, "id2label is .*; allowed: a name for each"),
        ({"id2label": [1]}, r"id2label is \[1\]; allowed: an object"),
        ({"id2label": {"0": "a", "1": "b"}}, r"'classifier.weight' has shape \[3, 48\], but .* asks for \[2, 48\]"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking'; allowed: regression"),
        ({"sentence_transformers": {"activation_fn": "os.system"}}, "activation is 'os.system'; Octavo knows"),
        ({"sbert_ce_default_activation_function": 5}, "sbert_ce_default_activation_function is 5"),
    ],
)
def test_broken_heads_are_refused(
    classifier: Classifier, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = classifier("bert")
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=message):
        engine(tmp_path, "cpu")
