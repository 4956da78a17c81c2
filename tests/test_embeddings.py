"""LLM.embed against transformers: every kind of pooling, ragged batches, small steps; and what it refuses."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import (
    LLM,
    AsyncLLM,
    ConfigError,
    EmbeddingRequestOutput,
    InvalidRequestError,
    LoRARequest,
    PoolingParams,
    SamplingParams,
)
from octavo.cli.main import main
from octavo.kernels.device import Device
from octavo.observe.flight_log import read_log
from octavo.simulator.replay import replay
from tests.conftest import TinyFolder
from tests.distributed.conftest import engine as engine_of_ranks
from tests.lora.written_adapters import merge, write_adapter
from tests.tiny_embedders import expected, make_tiny_embedder, write_modules, write_tokenizer

Embedder = Callable[..., Path]
#: around a block, beyond a partition of the CPU's attention, and up to the context
LENS = (1, 2, 15, 16, 17, 33, 129, 200)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory, one_torch_thread: None) -> Embedder:
    made: dict[Any, Path] = {}

    def get(name: str, kind: str | None = None, **options: Any) -> Path:
        key = name, kind, tuple(options.items())
        if key not in made:
            made[key] = make_tiny_embedder(name, tmp_path_factory.mktemp("embedder") / name, kind, **options)
        return made[key]

    return get


def texts_of(seed: int, lens: tuple[int, ...] = LENS) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 160, length).tolist() for length in lens]


def vectors(outputs: list[EmbeddingRequestOutput]) -> list[Any]:
    return [np.array(output.outputs.embedding, np.float32) for output in outputs]


def engine(folder: Path, backend: str | Device, **options: Any) -> LLM:
    name = backend if isinstance(backend, str) else backend.name
    return LLM(str(folder), backend=name, skip_tokenizer_init=True, num_threads=1, check_invariants=True, **options)


def check(folder: Path, kind: str, llm: LLM, texts: list[list[int]], *, normalizes: bool = True) -> None:
    for text, output, ours in zip(texts, outputs := llm.embed(texts, use_tqdm=False), vectors(outputs), strict=True):
        assert output.prompt_token_ids == text
        np.testing.assert_allclose(ours, expected(folder, kind, text, normalizes=normalizes), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["CLS", "LAST", "MEAN"])
def test_an_encoder_agrees_with_transformers(embedder: Embedder, kind: str, backend: Device) -> None:
    folder = embedder("bert", kind)
    with engine(folder, backend, max_num_batched_tokens=200, max_num_seqs=5) as llm:
        check(folder, kind, llm, texts_of(0))
        check(folder, kind, llm, texts_of(1)[::-1])


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta"])
def test_positions_begin_behind_the_padding_token_s(embedder: Embedder, name: str, backend: Device) -> None:
    folder = embedder(name, "MEAN")
    with engine(folder, backend) as llm:
        check(folder, "MEAN", llm, texts_of(6))
        with pytest.raises(InvalidRequestError, match="201 tokens, allowed are 200"):
            llm.embed([[5] * 201])


def test_a_gpu_computes_an_encoder_in_16_bits_unless_asked(
    embedder: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planned, and an encoder that no GPU runs is refused by name."""
    for dtype in ("auto", "float32"):
        assert main(["plan", str(embedder("bert", "MEAN")), "--gpu", "h100", "--dtype", dtype]) == 0
    assert main(["plan", str(embedder("mpnet", "MEAN")), "--gpu", "h100"]) == 2
    assert "of the family mpnet, and backend is 'triton'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mpnet", "modernbert"])
def test_positions_in_the_scores_agree_with_transformers(embedder: Embedder, name: str, backend: Device) -> None:
    """MPNet's biases by distance, the farthest ones too, and ModernBERT's rotations and windows."""
    folder = embedder(name, "MEAN")
    with engine(folder, backend, max_num_seqs=5) as llm:
        check(folder, "MEAN", llm, texts_of(9))


@pytest.mark.parametrize("kind", ["LAST", "MEAN"])
def test_a_decoder_agrees_with_transformers(embedder: Embedder, kind: str, backend: Device) -> None:
    """The last token's vector needs no whole texts: they are cut, and their prefixes cached."""
    folder = embedder("qwen3", kind)
    with engine(folder, backend, max_num_batched_tokens=24, max_model_len=200) as llm:
        texts = texts_of(0)
        check(folder, kind, llm, texts)
        again = llm.embed([texts[-1]], use_tqdm=False)[0]
        assert again.num_cached_tokens == (192 if kind == "LAST" else 0)
        check(folder, kind, llm, texts[::-1])


def test_a_generating_decoder_embeds_if_asked(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("llama")
    with engine(folder, "cpu", runner="pooling") as llm:
        check(folder, "LAST", llm, texts_of(0, (5, 40)))


def test_without_files_an_encoder_gives_its_first_token(embedder: Embedder) -> None:
    folder = embedder("bert")
    with engine(folder, "cpu") as llm:
        check(folder, "CLS", llm, texts_of(2))


@pytest.mark.parametrize(("name", "kind"), [("bert", "MEAN"), ("qwen3", "LAST")])
def test_overlapped_steps_give_the_same(embedder: Embedder, name: str, kind: str, tmp_path: Path) -> None:
    """A decoder's texts are cut: when the last part but one has come, the last one is planned already. And a replay
    decides all of it again."""
    folder, log = embedder(name, kind), tmp_path / "run.olog"
    limits = {"max_num_batched_tokens": 200 if kind == "MEAN" else 70, "max_num_seqs": 2, "max_model_len": 200}
    with engine(folder, "cpu", async_scheduling=True, record=str(log), **limits) as llm:
        check(folder, kind, llm, texts_of(3))
    replayed = replay(lambda: read_log(log))
    assert (replayed.difference, replayed.num_steps > 4) == (None, True)


def test_company_changes_no_bit(embedder: Embedder) -> None:
    texts = texts_of(4)
    with engine(embedder("bert", "MEAN"), "cpu") as llm:
        together = vectors(llm.embed(texts, use_tqdm=False))
        alone = [vectors(llm.embed([text], use_tqdm=False))[0] for text in texts]
    assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))


def test_a_cut_is_normalised_and_may_be_left_as_it_is(embedder: Embedder) -> None:
    folder, (text,) = embedder("bert", "MEAN", normalizes=False), texts_of(5, (20,))
    with engine(folder, "cpu") as llm:
        check(folder, "MEAN", llm, [text], normalizes=False)
        whole = expected(folder, "MEAN", text, normalizes=False)
        asked = [PoolingParams(dimensions=7), PoolingParams(dimensions=7, use_activation=True)]
        plain, normed = vectors(llm.embed([text, text], pooling_params=asked, use_tqdm=False))
    np.testing.assert_allclose(plain, whole[:7], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(normed, whole[:7] / np.linalg.norm(whole[:7]), rtol=1e-4, atol=2e-5)


def test_a_score_is_the_cosine(embedder: Embedder) -> None:
    folder, texts = embedder("bert", "MEAN", normalizes=False), texts_of(7, (5, 9, 30))
    one, *others = (expected(folder, "MEAN", text) for text in texts)
    with engine(folder, "cpu") as llm:
        found = llm.score([texts[0]], texts[1:], use_tqdm=False)
        np.testing.assert_allclose([each.outputs.score for each in found], [one @ other for other in others], atol=1e-5)
        assert found[1].prompt_token_ids == texts[0] + texts[2]
        np.testing.assert_allclose([each.outputs.score for each in llm.score(texts, texts)], 1, atol=1e-5)
        for first, second in ((texts[:2], texts), ([], texts), (texts, [])):
            with pytest.raises(InvalidRequestError, match=r"data_1 holds \d texts and data_2 \d, allowed are one and"):
                llm.score(first, second)
        with pytest.raises(InvalidRequestError, match="pooling_params is 5"):
            llm.score(texts, texts, pooling_params=5)  # type: ignore[arg-type]


def test_texts_are_cut_inside_their_special_tokens(tmp_path: Path, one_torch_thread: None) -> None:
    folder = make_tiny_embedder("bert", tmp_path, "CLS")
    write_tokenizer(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 10}')
    words = " ".join(f"w{index}" for index in range(3, 30))
    with LLM(str(folder), backend="cpu", num_threads=1) as llm:

        def ids(keep: int) -> list[int]:
            return llm.embed(words, pooling_params=PoolingParams(truncate_prompt_tokens=keep))[0].prompt_token_ids

        assert ids(-1) == [1, *range(3, 11), 2]
        assert ids(4) == [1, 3, 4, 2]
        assert llm.embed("w5 w6")[0].prompt_token_ids == [1, 5, 6, 2]
        with pytest.raises(InvalidRequestError, match=r"truncate_prompt_tokens is 2, allowed is 3 or more: 2 of"):
            ids(2)
        with pytest.raises(InvalidRequestError, match=r"truncate_prompt_tokens is 11, allowed is up to .* = 10"):
            ids(11)
        with pytest.raises(InvalidRequestError, match=r"has 29 tokens, allowed are 10 .* truncate_prompt_tokens=-1"):
            llm.embed(words)


def test_the_other_kind_of_call_is_refused(embedder: Embedder, tiny_folder: TinyFolder) -> None:
    with engine(embedder("bert"), "cpu") as llm:
        with pytest.raises(InvalidRequestError, match=r"embeds texts and generates none: call embed"):
            llm.generate([[5]], SamplingParams(detokenize=False))
        assert vectors(llm.embed([[5]]))[0].shape == (48,)
    with engine(tiny_folder("llama"), "cpu") as llm:
        with pytest.raises(InvalidRequestError, match=r"generates text and embeds none: runner='pooling'"):
            llm.embed([[5]])
        assert llm.generate([[5]], SamplingParams(detokenize=False, max_tokens=1))


def test_octavo_run_says_what_an_embedder_does(
    tmp_path: Path, one_torch_thread: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.cli.main import main

    monkeypatch.setattr("sys.stdin", io.StringIO())
    folder = make_tiny_embedder("bert", tmp_path, "MEAN")
    write_tokenizer(folder)
    assert main(["run", str(folder), "w5", "--backend", "cpu"]) == 2
    told = capsys.readouterr().err
    assert "generates no text; its tasks are embed, token_embed: in Python call LLM.embed" in told
    assert "chat template" not in told


def test_an_encoder_cannot_generate(embedder: Embedder) -> None:
    with pytest.raises(ConfigError, match=r"runner is 'generate', but .* is an encoder \(bert\)"):
        engine(embedder("bert"), "cpu", runner="generate")


def test_two_engines_give_the_same(embedder: Embedder) -> None:
    folder = embedder("bert", "MEAN")
    with engine(folder, "cpu", data_parallel_size=2) as llm:
        check(folder, "MEAN", llm, texts_of(8))


def test_two_ranks_give_the_same(embedder: Embedder) -> None:
    folder = embedder("bert", "MEAN")
    with engine_of_ranks(folder, 2, max_model_len=None) as llm:
        check(folder, "MEAN", llm, texts_of(8))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2, but .* no pipeline does: set it to 1"),
        ({"long_prefill_token_threshold": 5}, "long_prefill_token_threshold is 5, but .* reads each text whole: set"),
    ],
)
def test_options_that_an_encoder_cannot_have(embedder: Embedder, option: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine(embedder("bert"), "cpu", **option)


def test_an_encoder_keeps_no_keys_in_few_bits(embedder: Embedder) -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'float16', but a bert model keeps no keys"):
        engine(embedder("bert"), "cpu", kv_cache_dtype="float16")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dimensions": 49}, r"dimensions is 49, allowed is 1 to 48"),
        ({"dimensions": 0}, r"dimensions is 0, allowed are None, whole numbers from 1 up"),
        ({"dimensions": True}, r"dimensions is True"),
        ({"use_activation": 1}, r"use_activation is 1, allowed are True, False and None"),
        ({"truncate_prompt_tokens": 0}, r"truncate_prompt_tokens is 0, allowed are None, -1 and"),
        ({"truncate_prompt_tokens": 2**40}, r"truncate_prompt_tokens is 1099511627776"),
    ],
)
def test_bad_parameters_are_refused(embedder: Embedder, params: dict[str, Any], message: str) -> None:
    with engine(embedder("bert"), "cpu") as llm, pytest.raises(InvalidRequestError, match=message):
        llm.embed([[5]], pooling_params=PoolingParams(**params))


@pytest.mark.parametrize("bad", [[[]], [[160]], [[-1]], [list(range(3, 150)) * 2], "text", [None], [{"prompt": 1}]])
def test_bad_texts_are_refused_before_anything_runs(embedder: Embedder, bad: Any) -> None:
    with engine(embedder("bert"), "cpu") as llm:
        with pytest.raises(InvalidRequestError):
            llm.embed(bad)
        with pytest.raises(InvalidRequestError, match="pooling_params"):
            llm.embed([[5], [6]], pooling_params=[PoolingParams()])
        with pytest.raises(InvalidRequestError, match="pooling_params is 5"):
            llm.embed([[5]], pooling_params=5)  # type: ignore[arg-type]


def test_numbers_that_are_not_finite_fail_their_own_request(tmp_path: Path, one_torch_thread: None) -> None:
    from safetensors.numpy import load_file, save_file

    folder = make_tiny_embedder("bert", tmp_path, "MEAN")
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7] = np.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_modules(folder, {"pooling_mode": "mean"})
    with engine(folder, "cpu") as llm:
        with pytest.raises(InvalidRequestError, match="its numbers are not finite"):
            llm.embed([[5, 7]])
        check(folder, "MEAN", llm, [[5, 6]])


def test_async_llm_encodes_as_llm_does(embedder: Embedder) -> None:
    folder = embedder("bert", "MEAN")
    options: dict[str, Any] = {"backend": "cpu", "skip_tokenizer_init": True, "num_threads": 1}
    params = [PoolingParams(task="embed", dimensions=5), PoolingParams(task="token_embed"), PoolingParams()]
    text = texts_of(3, (17,))[0]
    with LLM(str(folder), **options) as llm:
        whole = [llm.encode([text], one.clone(), pooling_task=one.task or "embed")[0] for one in params]

    async def ask() -> list[Any]:
        llm = AsyncLLM(str(folder), **options)
        try:
            found = [one for each in params async for one in llm.encode(text, each, request_id=f"{each.task}")]
            with pytest.raises(InvalidRequestError, match="pooling_params is 5, allowed are a PoolingParams and None"):
                await anext(llm.encode(text, 5))  # type: ignore[arg-type]
            with pytest.raises(InvalidRequestError, match="dimensions is 1000, allowed is 1 to"):
                await anext(llm.encode(text, PoolingParams(dimensions=1000)))
        finally:
            llm.shutdown()
        return found

    found = asyncio.run(ask())
    assert [one.request_id for one in found] == ["embed", "token_embed", "None"]
    for one, other in zip(found, whole, strict=True):
        assert np.array_equal(one.outputs.data, other.outputs.data)
        assert one.prompt_token_ids == other.prompt_token_ids == text


def test_the_packaged_model_agrees_with_transformers() -> None:
    pytest.importorskip("all_minilm_l6_v2")
    import torch
    import transformers

    from octavo.config import ModelConfig
    from octavo.models.located import tokenizer_source

    texts = ["A lighthouse is a tower.", "Paper", "ink " * 300]
    with LLM("all-minilm-l6-v2", backend="cpu") as llm:
        ours = vectors(llm.embed(texts, pooling_params=PoolingParams(truncate_prompt_tokens=-1), use_tqdm=False))
    folder = str(tokenizer_source(ModelConfig(model="all-minilm-l6-v2")))
    tokenizer, model = (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoModel.from_pretrained(folder),
    )
    for text, vector in zip(texts, ours, strict=True):
        with torch.inference_mode():
            batch = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            theirs = model(**batch).last_hidden_state[0].mean(0)
        assert float(theirs @ torch.from_numpy(vector)) / float(theirs.norm()) > 0.9999


@pytest.mark.parametrize(("name", "kind", "targets"), [
    ("llama", "LAST", ("q_proj", "down_proj", "embed_tokens")),
    ("bert", "MEAN", ("query", "value")),
])  # fmt: skip
def test_a_text_is_embedded_as_by_the_merged_model(
    name: str, kind: str, targets: tuple[str, ...], embedder: Embedder, backend: Device, tmp_path: Path
) -> None:
    """Beside texts without an adapter, and with another one in the only slot."""
    folder, texts = embedder(name, kind), texts_of(9)
    given = [write_adapter(tmp_path / f"a{seed}", folder, targets, rank=3, seed=seed) for seed in (1, 2)]
    adapters = [LoRARequest(each.name, number, str(each)) for number, each in enumerate(given, 1)]
    found = []
    for one in (folder, *(merge(tmp_path / f"merged {each.name}", folder, each) for each in given)):
        with engine(one, backend) as llm:
            found.append(vectors(llm.embed(texts, use_tqdm=False)))
    asked = [(None, *adapters)[place % 3] for place in range(len(texts))]
    with engine(folder, backend, enable_lora=True) as llm:
        ours = vectors(llm.embed(texts, lora_request=asked, use_tqdm=False))
        for place, vector in enumerate(ours):
            np.testing.assert_allclose(vector, found[place % 3][place], rtol=1e-4, atol=2e-5)
        assert np.abs(ours[1] - found[0][1]).max() > 1e-3
        assert llm.score([texts[1]], [texts[1]], lora_request=adapters[0])[0].outputs.score == pytest.approx(1)
