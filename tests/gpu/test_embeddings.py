"""Embeddings and classes on a GPU, or in Triton's interpreter, against the reference backend: ragged steps, pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM, ConfigError, LoRARequest, PoolingParams
from tests.gpu.device import ON_GPU
from tests.lora.written_adapters import LINEARS, write_adapter
from tests.tiny_embedders import make_tiny_classifier, make_tiny_embedder

pytestmark = pytest.mark.usefixtures("interpreter")

#: a single token, around a tile of keys and of queries, and beyond two of them where a GPU computes
LENS = (1, 2, 33, 70, *((31, 129, 200) if ON_GPU else ()))
CASES = ["bert", "modernbert", *(["qwen3"] if ON_GPU else [])]


def engine(folder: Path, backend: str, **options: Any) -> LLM:
    given = {"dtype": "float32", "max_num_seqs": 8, "max_model_len": 200, "max_num_batched_tokens": 200, **options}
    return LLM(str(folder), backend=backend, skip_tokenizer_init=True, num_gpu_blocks_override=64, **given)


def texts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 160, length).tolist() for length in LENS]


@pytest.mark.parametrize("name", CASES)
def test_embeddings_are_the_reference_s(name: str, tmp_path: Path) -> None:
    """Whole texts, and each of their tokens; ModernBERT's windows are narrower than a tile."""
    sizes = {"num_hidden_layers": 2}
    folder, found = make_tiny_embedder(name, tmp_path, "MEAN", **sizes), []
    for backend in ("reference", "triton"):
        with engine(folder, backend) as llm:
            params = [PoolingParams(task="embed"), *[PoolingParams(task="token_embed")] * (len(LENS) - 1)]
            outputs = llm.encode(texts(), params, use_tqdm=False)
            found.append([output.outputs.data for output in outputs])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)
        assert ((one * other).sum(-1) > 0.9999).all()


def test_embeddings_with_adapters_are_the_reference_s(tmp_path: Path) -> None:
    """Some texts are cut, and the next step is planned before a part has come."""
    folder, found = make_tiny_embedder("qwen3", tmp_path / "model", "LAST", num_hidden_layers=2), []
    adapter = LoRARequest("a", 1, str(write_adapter(tmp_path / "a", folder, (*LINEARS, "embed_tokens"), rank=3)))
    budget = 200 if ON_GPU else 64
    for backend in ("reference", "triton"):
        with engine(folder, backend, enable_lora=True, max_num_batched_tokens=budget) as llm:
            asked = [adapter, None] * (len(LENS) // 2) + [adapter] * (len(LENS) % 2)
            found.append([one.outputs.embedding for one in llm.embed(texts(), lora_request=asked, use_tqdm=False)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_classes_of_pairs_are_the_reference_s(tmp_path: Path) -> None:
    folder, found = make_tiny_classifier("bert", tmp_path, num_hidden_layers=2), []
    prompts = [{"prompt_token_ids": ids, "token_type_ids": [0] + [1] * (len(ids) - 1)} for ids in texts()[1:3]]
    for backend in ("reference", "triton"):
        with engine(folder, backend) as llm:
            found.append([output.outputs.probs for output in llm.classify(prompts, use_tqdm=False)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES if ON_GPU else ["modernbert"])
def test_in_16_bits_they_point_the_same_way(name: str, tmp_path: Path) -> None:
    """The interpreter has no bfloat16."""
    folder, found = make_tiny_embedder(name, tmp_path, "MEAN", hidden_size=64, num_hidden_layers=2), []
    for backend, dtype in (("reference", "float32"), ("triton", "bfloat16" if ON_GPU else "float16")):
        with engine(folder, backend, dtype=dtype) as llm:
            found.append([output.outputs.embedding for output in llm.embed(texts()[-2:], use_tqdm=False)])
    assert (np.sum(np.array(found[0]) * np.array(found[1]), axis=1) > 0.999).all()


def test_what_no_gpu_kernel_computes_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_embedder("mpnet", tmp_path / "mpnet")
    with pytest.raises(ConfigError, match=r"of the family mpnet, and backend is 'triton': no GPU kernel .*'cpu' or"):
        engine(folder, "triton")
    folder = make_tiny_embedder("bert", tmp_path / "bert")
    with pytest.raises(ConfigError, match="an encoder's tokens see those after them, which its kernels do not compute"):
        engine(folder, "triton", deterministic=True)
