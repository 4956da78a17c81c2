"""`octavo kernels test` and `bench` on a GPU's backend: random calls of each op, and their times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.gpu.device import ON_GPU, interpreted

from octavo.cli.kernels_test import _GPU_ERRORS  # isort: skip
from octavo.kernels.cuda.device import CudaDevice  # isort: skip
from octavo.kernels.kv_layout import KVDType  # isort: skip
from octavo.kernels.ops import OPS  # isort: skip
from octavo.kernels.cuda import timing  # isort: skip
from octavo.testing.op_bench import Limits, measure  # isort: skip
from octavo.testing.op_cases import Sizes  # isort: skip
from octavo.testing import op_trials  # isort: skip
from octavo.testing.op_trials import trials  # isort: skip

DTYPES: tuple[KVDType, ...] = ("float32", "bfloat16") if ON_GPU else ("float32",)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_trials(op: str, dtype: KVDType, monkeypatch: pytest.MonkeyPatch) -> None:
    """All trials; under the interpreter only the first one of each op, with a prompt that still has several tiles."""
    interpreted(monkeypatch)
    if not ON_GPU:
        monkeypatch.setattr(op_trials, "STEPS", (((0, 40),), *op_trials.STEPS[1:]))
    for trial in list(trials(op))[: None if ON_GPU else 1]:
        assert trial.error(CudaDevice(), dtype) <= _GPU_ERRORS[dtype], trial.label


@pytest.mark.parametrize("op", OPS)
def test_every_op_is_measured(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing is timed, but every call is launched."""
    interpreted(monkeypatch)
    sizes = Sizes(64, (1, 3), (4, 2, 64), ((2, 17, 1), (1, 0, 5)), "bfloat16", "bfloat16")
    if not ON_GPU:
        sizes = replace(sizes, dtype="float32", kv_dtype="float32")
        times = iter([900.0, 100.0] * 2)

        def launch(calls: list[Callable[[], object]], repeats: int) -> float:
            calls[0]()
            return next(times)

        monkeypatch.setattr(timing, "graph_time_us", launch)
    rows = list(measure(op, "triton", sizes, Limits(4e12, 7e14)))
    assert len(rows) == 2
    if not ON_GPU:
        assert [row.seconds for row in rows] == [pytest.approx(800e-6 / (7 if op == "embedding" else 8))] * 2
