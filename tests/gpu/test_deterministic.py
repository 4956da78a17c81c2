"""`deterministic` on a GPU, or under Triton's interpreter: an answer's logits have the same bits in any company."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM
from tests.company import ALL_LOGITS, ENGINE, Company
from tests.conftest import TinyFolder
from tests.gpu.device import ON_GPU, needs_gpu

pytestmark = pytest.mark.usefixtures("interpreter")

FEW_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
CONFIGS = Path(__file__).parents[2] / "examples/configs"


def engine(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), backend="triton", deterministic=True, **ENGINE | options)


@pytest.mark.skipif(ON_GPU, reason="the tests below ask more of a GPU")
@pytest.mark.parametrize(
    ("name", "sizes", "company"),
    [
        ("qwen3", {"num_hidden_layers": 1, **FEW_HEADS}, Company(20, (3,), (9,), (1,), few_blocks=4, kinds=({},))),
        (
            "deepseek-v3",
            {"num_hidden_layers": 1, "first_k_dense_replace": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
            Company(20, (3,), (9,), (1,), few_blocks=None, kinds=({},)),
        ),
    ],
)
def test_an_interpreted_answer_does_not_depend_on_its_company(
    name: str, sizes: dict[str, int], company: Company, tmp_path: Path
) -> None:
    from tests.tiny_models import make_tiny_model

    make_tiny_model(name, tmp_path, **sizes)

    def make(**more: Any) -> LLM:
        limits = {"dtype": "float32", "max_model_len": 48, "max_num_seqs": 4, "num_gpu_blocks_override": 60}
        return engine(tmp_path, **limits | more)

    company.check(make, ALL_LOGITS.replace(logprobs=2, max_tokens=3))


@needs_gpu
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in ("qwen3", "gemma2", "deepseek-v3") for dtype in ("bfloat16", "float16", "float32")),
        ("gpt2", "float32"),  # its heads are too small for a GPU in 16 bits
    ],
)
def test_an_answer_does_not_depend_on_its_company(name: str, dtype: str, tiny_folder: TinyFolder) -> None:
    def make(**more: Any) -> LLM:
        sizes = {"max_model_len": 256, "max_num_seqs": 40, "num_gpu_blocks_override": 600}
        return engine(tiny_folder(name, 0, dtype), dtype=dtype, **sizes | more)

    few_blocks = None if name == "gemma2" else 17
    Company(length=150, batches=(2, 7, 33), budgets=(7, 64), kept=(0, 3, 5), few_blocks=few_blocks).check(make)


@needs_gpu
@pytest.mark.parametrize("model", ["qwen3-0.6b", "llama-3.1-8b", "deepseek-v2-lite"])
def test_an_answer_of_a_real_shape_does_not_depend_on_its_company(model: str, tmp_path: Path) -> None:
    """Long enough for parts of a context that different programs compute. Of latents, four layers."""
    config = json.loads((CONFIGS / model / "config.json").read_text())
    config["num_hidden_layers"] = 4 if "kv_lora_rank" in config else config["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")

    def make(**more: Any) -> LLM:
        sizes = {"load_format": "dummy", "max_model_len": 2048, "max_num_seqs": 40, "num_gpu_blocks_override": 4000}
        return engine(tmp_path, **sizes | more)

    long = Company(length=1500, batches=(7, 33), budgets=(250,), kept=(2,), few_blocks=129)
    long.check(make, ALL_LOGITS.replace(logprobs=20, max_tokens=4))
