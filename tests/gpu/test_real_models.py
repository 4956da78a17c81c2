"""A real model gives the same text on a GPU as on a CPU, and in bfloat16 the same logits as transformers."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from octavo import SamplingParams  # noqa: E402
from octavo.models.packaged import locate_packaged_model  # noqa: E402
from tests import test_real_models as on_cpu  # noqa: E402

#: root mean square of log-probabilities' differences between two computations in bfloat16
TOLERANCE = 0.1


@pytest.mark.parametrize("name", on_cpu.PACKAGES)
def test_float32_text_equals_transformers(name: str) -> None:
    with on_cpu.open_model(name, dtype="float32", backend="triton") as llm:
        on_cpu.check_float32_text(name, llm)


@pytest.mark.parametrize("name", on_cpu.PACKAGES)
def test_bfloat16_keeps_the_perplexity(name: str) -> None:
    with on_cpu.open_model(name, dtype="float32", backend="triton") as llm:
        exact = on_cpu.read(llm).perplexity
    with on_cpu.open_model(name, dtype="bfloat16", backend="triton") as llm:
        assert on_cpu.read(llm).perplexity == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("name", on_cpu.PACKAGES)
def test_bfloat16_logits_agree_with_transformers(name: str) -> None:
    check_logits(name, torch.bfloat16, "cuda", TOLERANCE, dtype="bfloat16", backend="triton")


def check_logits(name: str, torch_dtype: Any, device: str, tolerance: float, **options: Any) -> None:
    """For every token of the reference texts, given the tokens before it."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf", reason="transformers reads GGUF files by it")
    texts = [case["prompt_token_ids"] + case["output_token_ids"] for case in on_cpu.REFERENCE[name]]
    with on_cpu.open_model(name, **options) as llm:
        outputs = llm.generate(texts, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    file = locate_packaged_model(name)
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(file.parent, gguf_file=file.name, dtype=torch_dtype).to(device)
    squares = []
    for text, output in zip(texts, outputs, strict=True):
        ids = torch.tensor([text], device=device)
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
        expected = logprobs.gather(-1, ids[0, 1:, None])[:, 0].tolist()
        ours = [
            row[token_id].logprob for token_id, row in zip(text[1:], (output.prompt_logprobs or [])[1:], strict=True)
        ]
        squares += [(a - b) ** 2 for a, b in zip(ours, expected, strict=True)]
    assert len(squares) > 200
    assert (sum(squares) / len(squares)) ** 0.5 < tolerance
