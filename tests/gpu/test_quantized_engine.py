"""Engines on a GPU whose matrices stay quantised, against the CPU's with the same numbers made dense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gpu.device import ON_GPU

if not ON_GPU:
    pytest.skip("needs a GPU", allow_module_level=True)

from octavo import LLM, SamplingParams
from octavo.kernels.cuda_cpp.compile import find_nvcc
from octavo.quantization.at_load import FORMATS
from tests.tiny_models import make_tiny_model

SIZES: dict[str, Any] = {
    **{"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 160},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2},
}
TOLD = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False, logprobs=3, prompt_logprobs=1)

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="there is no nvcc")


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("num_prompts", [1, 5, 24])
def test_logprobs_are_those_of_the_same_numbers(
    quantization: str, num_prompts: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = str(make_tiny_model("llama", tmp_path_factory.mktemp("wide") / "llama", std=0.06, **SIZES))
    options = {"quantization": quantization, "skip_tokenizer_init": True, "max_model_len": 96, "max_num_seqs": 32}
    rng = np.random.default_rng(num_prompts)
    prompts = [rng.integers(3, 160, 20).tolist() for _ in range(num_prompts)]
    with LLM(folder, backend="triton", dtype="bfloat16", **options) as own:
        assert "multiplied as they are" in dict(own.card)["quantised"]
        outputs = own.generate(prompts, TOLD, use_tqdm=False)
        held = own.stats()
    assert held.num_used_blocks == 0
    with LLM(folder, backend="cpu", dtype="float32", **options) as plain:
        whole = [output.prompt_token_ids + output.outputs[0].token_ids for output in outputs]
        expected = plain.generate(whole, TOLD.replace(max_tokens=1, prompt_logprobs=3), use_tqdm=False)
    errors = []
    for output, truth in zip(outputs, expected, strict=True):
        rows = [*(output.prompt_logprobs or []), *(output.outputs[0].logprobs or [])]
        for row, other in zip(rows[1:], (truth.prompt_logprobs or [])[1:], strict=True):
            assert row is not None
            assert other is not None
            errors += [entry.logprob - other[token].logprob for token, entry in row.items() if token in other]
    assert len(errors) > 20 * num_prompts
    assert np.sqrt(np.mean(np.square(errors))) < 0.1  # more than 4 rows are rounded to fp8, too
