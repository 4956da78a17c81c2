"""`deterministic` on the CPU: a request's logits are the same to the bit, alone and in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo import LLM
from octavo.config import BackendConfig
from octavo.errors import ConfigError
from octavo.kernels.registry import select
from tests.company import ENGINE, Company
from tests.conftest import TinyFolder


def check(folder: Path, **options: Any) -> None:
    def make(**more: Any) -> LLM:
        sizes = {"max_model_len": 256, "max_num_seqs": 40, "num_gpu_blocks_override": 600, "num_threads": 2}
        return LLM(str(folder), backend="cpu", deterministic=True, **ENGINE | sizes | options | more)

    Company(length=150, batches=(2, 7, 33), budgets=(7, 64), kept=(0, 3, 5), few_blocks=17).check(make)


#: heads of 16 and 12 dims, and of 8 in groups of one; both are computed by kernels of other widths
MODELS = [("qwen3", "float32"), ("llama-tied-bias", "bfloat16"), ("gpt2", "float16"), ("qwen3-moe", "float32")]
MODELS += [("deepseek-v3", "bfloat16")]


@pytest.mark.parametrize(("name", "dtype"), MODELS)
def test_an_answer_does_not_depend_on_its_company(name: str, dtype: str, tiny_folder: TinyFolder) -> None:
    check(tiny_folder(name, 0, dtype))


def test_the_reference_backend_promises_nothing() -> None:
    with pytest.raises(ConfigError, match="deterministic is True, but the backend is 'reference'"):
        select(BackendConfig(backend="reference", deterministic=True))


def test_an_attention_backend_cannot_be_chosen_too() -> None:
    with pytest.raises(ConfigError, match="attention_backend is 'hopper', and deterministic is True"):
        BackendConfig(attention_backend="hopper", deterministic=True)
