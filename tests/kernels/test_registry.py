"""Which backend is chosen, and the reason that is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.config import BackendConfig
from octavo.errors import BackendUnavailableError, ConfigError
from octavo.kernels import registry
from octavo.kernels.build import build
from octavo.kernels.cuda.device import CudaDevice
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.tensor import from_array

NO_GPU = "this machine has no NVIDIA GPU, or its driver is not installed"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaDevice, "gpu", None)


def test_an_old_gpu_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaDevice, "gpu", GPU("Tesla V100", (7, 0), 16 << 30, 80))
    with pytest.raises(BackendUnavailableError, match=r"Tesla V100 has compute capability 7\.0; 8\.0 or more"):
        registry.select(BackendConfig(backend="triton"))


def test_auto_takes_the_first_that_runs() -> None:
    selection = registry.select(BackendConfig())
    assert selection.device.name == "cpu"
    assert selection.why == f"cpu, the fastest that runs here; triton cannot: {NO_GPU}"
    assert registry.describe() == [("triton", NO_GPU), ("cpu", None), ("reference", None)]


def test_auto_falls_back_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "why_not", lambda: "no compiler")
    selection = registry.select(BackendConfig())
    assert selection.device.name == "reference"
    assert "cpu cannot: no compiler" in selection.why
    assert registry.describe()[1] == ("cpu", "no compiler")
    with pytest.raises(BackendUnavailableError, match="backend 'cpu' cannot run here: no compiler"):
        registry.select(BackendConfig(backend="cpu"))


def test_a_backend_asked_for_is_taken() -> None:
    selection = registry.select(BackendConfig(backend="reference"))
    assert selection.device.name == "reference"
    assert selection.why == "reference, as asked"
    threads: Any = registry.select(BackendConfig(backend="cpu", num_threads=3)).device
    assert threads.num_threads == 3


def test_an_unknown_backend_is_an_error() -> None:
    with pytest.raises(ConfigError, match="backend is 'tpu', allowed are 'auto', 'triton', 'cpu' and 'reference'"):
        registry.select(BackendConfig(backend="tpu"))


def test_a_gpus_attention_is_not_ignored_elsewhere() -> None:
    with pytest.raises(ConfigError, match=r"attention_backend is 'flash_attn_4', a choice for GPUs, .* 'cpu'"):
        registry.select(BackendConfig(attention_backend="flash_attn_4"))


def test_nothing_is_built_for_weights_that_keep_their_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(build, "why_not", lambda: asked.append(True) or "no compiler")
    convert = registry.converter(BackendConfig())
    assert not asked
    ones = from_array(np.ones((2, 2), np.float32))
    assert [convert(ones, dtype).dtype for dtype in ("F16", "BF16")] == ["F16", "BF16"]
    assert len(asked) == 1


def test_an_unknown_attention_is_an_error() -> None:
    allowed = "'auto', 'cuda', 'hopper', 'triton', 'flash_attn_4'"
    with pytest.raises(ConfigError, match=f"attention_backend is 'fa9', allowed are {allowed}"):
        BackendConfig(attention_backend="fa9")
