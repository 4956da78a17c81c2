"""One row's mixture by the GPU's own kernel, on the CPU: `block_on_cpu/exchange.cuh` has the threads of all blocks take
turns.

tests/gpu/test_one_row_mixture.py asks the same of a GPU, for more mixtures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda_cpp import one_row_experts, one_row_format  # noqa: E402
from tests.gpu import test_coded_mixture, test_mixture  # noqa: E402
from tests.gpu.test_mixture import CASES, room_for  # noqa: E402
from tests.gpu.test_one_row_mixture import experts_in, mixture_equals_torch  # noqa: E402
from tests.kernels.kernel_on_cpu import FEW_BLOCKS, run_on_cpu  # noqa: E402

HIDDEN, INNER = 640, 256  # in fp8 5 spans and 2; dense two stages of 5, and one of 4


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (test_mixture, test_coded_mixture):
        monkeypatch.setattr(module, "HIDDEN", HIDDEN)
        monkeypatch.setattr(module, "INNER", INNER)
    monkeypatch.setattr(one_row_format, "shared_bytes", lambda code, hidden: 48 << 10)  # rings go round
    monkeypatch.setattr(one_row_format, "FLIGHT_BYTES", 20 << 10)  # four stages, of more in the ring
    run_on_cpu(one_row_experts, tmp_path, monkeypatch, compiled_by=one_row_format)
    one_row_experts.one_row_kernel.cache_clear()
    one_row_experts._map.cache_clear()
    yield
    one_row_experts.one_row_kernel.cache_clear()
    one_row_experts._map.cache_clear()


@pytest.mark.parametrize(
    ("form", "name"), [("bfloat16", "gpt-oss"), ("fp8", "deepseek v3"), ("fp8, blocks", "mixtral")]
)
def test_it_equals_torch(form: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With biases and a clamped gate; and with groups of experts and a bias of the choice."""
    if "blocks" in form:  # of 128 outputs, in each half of the second product's
        for module in (test_mixture, test_coded_mixture):
            monkeypatch.setattr(module, "HIDDEN", 768)
    own, dense = experts_in(form, name)
    room = room_for(CASES[name], torch.bfloat16)
    mixture_equals_torch(own, dense, room, FEW_BLOCKS, torch.bfloat16)
