"""Random calls of each op: every op has some, and they notice a kernel that is slightly wrong."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.ops import OPS
from octavo.kernels.reference.device import ReferenceDevice
from octavo.kernels.reference.ops import PLAIN
from octavo.testing.op_trials import Trial, relative_error, trials


@pytest.mark.parametrize("op", OPS)
def test_the_cpu_passes_every_ops_trials(op: str) -> None:
    found = list(trials(op))
    assert len(found) >= 2
    for trial in found:
        assert trial.error(CpuDevice(2)) <= OPS[op].error, trial.label


def test_a_wrong_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PLAIN["softcap"]
    trial: Trial = next(trials("softcap"))
    assert trial.error(ReferenceDevice()) == 0
    monkeypatch.setitem(PLAIN, "softcap", lambda x, cap: right(x, cap) * (1 + 1e-4))
    assert 1e-5 < trial.error(CpuDevice(1)) < 1e-3


def test_the_error_of_an_element_is_relative_to_it_and_to_the_typical_one() -> None:
    theirs = np.array([3.0, 0.0, -3.0, 3.0], np.float32)
    typical = float(np.sqrt(27 / 4))
    assert relative_error(theirs, theirs) == 0
    assert relative_error(theirs + np.float32([0, 0.5, 0, 0]), theirs) == pytest.approx(0.5 / typical)
    assert relative_error(theirs + np.float32([0.5, 0, 0, 0]), theirs) == pytest.approx(0.5 / (3 + typical))
    assert relative_error(np.float32([np.nan, 0, -3, 3]), theirs) == float("inf")
