"""Families in every format of weights on Triton: all of them on a GPU, some under the interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.device import ON_GPU, interpreted

from octavo.config import BackendConfig  # isort: skip
from octavo.kernels.reference.device import ReferenceDevice  # isort: skip
from octavo.kernels.registry import BACKENDS, ONE_RANK  # isort: skip
from octavo.models.supported import why_not_on  # isort: skip
from tests.models.supported_pairs import PAIRS, logits_of  # isort: skip

_INTERPRETED = [
    ("gemma3", "awq"), ("granitemoe", "gguf"), ("deepseek_v2", "fp8"), ("opt", "compressed-tensors"), ("bert", "awq")
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "method"), [pair for pair in PAIRS if not why_not_on(pair[0], "triton")] if ON_GPU else _INTERPRETED
)
def test_a_pair_gives_the_hosts_logits(
    family: str, method: str, one_torch_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreted(monkeypatch)
    device = BACKENDS["triton"](BackendConfig(), ONE_RANK)
    own, expected = (logits_of(each, family, method) for each in (device, ReferenceDevice()))
    assert np.linalg.norm(own - expected) / np.linalg.norm(expected) < (2e-2 if ON_GPU else 1e-4)
