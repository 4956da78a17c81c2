"""A real model on a GPU gives the text it gives on a CPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from tests import test_real_models as on_cpu  # noqa: E402


@pytest.mark.parametrize("name", on_cpu.PACKAGES)
def test_float32_text_equals_transformers(name: str) -> None:
    on_cpu.check_float32_text(name, backend="triton")


@pytest.mark.parametrize("name", on_cpu.PACKAGES)
def test_bfloat16_keeps_the_perplexity(name: str) -> None:
    with on_cpu.open_model(name, dtype="float32", backend="triton") as llm:
        exact = on_cpu.perplexity(llm)
    with on_cpu.open_model(name, dtype="bfloat16", backend="triton") as llm:
        assert on_cpu.perplexity(llm) == pytest.approx(exact, rel=0.01)
