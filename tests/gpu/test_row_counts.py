"""Padding of steps: which row counts are kept, what a measurement stores, and that steps use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.gpu.device import ON_GPU

pytest.importorskip("triton")

from octavo.kernels.triton.linear.row_counts import (
    MOST,
    UNMEASURED,
    cheap_row_counts,
    keep_cheap,
    padded_size,
    padded_tokens,
)


def test_only_counts_that_save_time_are_kept() -> None:
    counts = (256, 288, 304, 352, 384, 448, 512, 528, 640)
    times = (204, 251, 229, 265, 263, 448, 303, 369, 414)
    assert keep_cheap(counts, times) == (256, 304, 384, 512, 528, 640)
    assert keep_cheap((16, 32, 48), (9.9, 10.0, 10.0)) == (48,), "one percent is noise"
    assert keep_cheap((16,), (1.0,)) == (16,)


def test_steps_are_padded_to_the_next_that_is_kept() -> None:
    counts = (256, 304, 512, 2048)
    assert [padded_tokens(n, counts) for n in (1, 256, 257, 2048, 2049)] == [256, 256, 304, 2048, 2049]
    sizes = [padded_size(n, 1024, counts) for n in (1, 2, 3, 4, 5, 9, 255, 257, 400, 600)]
    assert sizes == [1, 2, 3, 4, 8, 16, 256, 304, 512, 1024]
    assert [padded_size(n, 100, counts) for n in (7, 99)] == [8, 100]


def test_without_a_gpu_they_are_what_they_are_everywhere() -> None:
    weight = torch.empty(64, 32)
    counts = cheap_row_counts([weight], 1000, torch.empty(0))
    assert counts == (*(count for count in UNMEASURED if count < 1000), 1000)
    assert cheap_row_counts([weight], 1 << 20, torch.empty(0))[-1] == MOST


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_they_are_measured_once_on_a_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path))
    weights = [torch.randn(3072, 1024, device="cuda").bfloat16() for _ in range(30)]
    scratch = torch.empty(2048 * (1024 + 3072), device="cuda", dtype=torch.bfloat16)
    first = cheap_row_counts(weights, 2048, scratch)
    assert first[-1] == 2048
    assert sorted(set(first)) == list(first)
    (file,) = (tmp_path / "row_counts").iterdir()
    times = json.loads(file.read_text())["microseconds"]
    assert all(0 < time < 1e5 for time in times.values())
    assert times["2048"] > 2 * times["16"], "products, not how fast the host launches them"
    monkeypatch.setattr(
        "octavo.kernels.triton.linear.row_counts._measure", lambda *_: pytest.fail("it is known already")
    )
    assert cheap_row_counts(weights, 2048, scratch) == first
    file.write_text("{}")
    with pytest.raises(pytest.fail.Exception):
        cheap_row_counts(weights, 2048, scratch)
