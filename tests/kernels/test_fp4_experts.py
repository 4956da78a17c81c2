"""One row times its experts in MXFP4 by the GPU's own kernel, on the CPU: `block_on_cpu/exchange.cuh` has the threads
of all blocks take turns.

tests/gpu/test_coded_mixture.py asks the same of a GPU, for more mixtures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda.driver import GPU  # noqa: E402
from octavo.kernels.cuda_cpp import fp4_experts  # noqa: E402
from octavo.kernels.cuda_cpp.fp4_experts import Fp4Experts  # noqa: E402
from octavo.kernels.mixture import ExpertStack  # noqa: E402
from octavo.kernels.scaled import ScaledFormat  # noqa: E402
from octavo.kernels.triton.coded.weight_stack import WeightStack  # noqa: E402
from octavo.kernels.triton.experts.mixture import Experts  # noqa: E402
from octavo.kernels.triton.experts.room import Room  # noqa: E402
from tests.gpu import test_coded_mixture, test_mixture  # noqa: E402
from tests.gpu.device import relative_error  # noqa: E402
from tests.gpu.test_coded_mixture import coded_experts  # noqa: E402
from tests.gpu.test_mixture import CASES, in_torch, room_for  # noqa: E402
from tests.kernels.kernel_on_cpu import run_on_cpu  # noqa: E402

FIVE_BLOCKS = GPU("a CPU", (9, 0), 1 << 34, 5)
BF16, MXFP4 = torch.bfloat16, ScaledFormat("E2M1", (1, 32))
HIDDEN, INNER = 320, 64  # spans of 256 inputs, the last of which is not whole, for two warps, and for one


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (test_mixture, test_coded_mixture):
        monkeypatch.setattr(module, "HIDDEN", HIDDEN)
        monkeypatch.setattr(module, "INNER", INNER)
    monkeypatch.setattr(fp4_experts, "LEAST_INPUTS", 0)
    run_on_cpu(fp4_experts, tmp_path, monkeypatch)
    fp4_experts.fp4_kernel.cache_clear()
    fp4_experts._map_of.cache_clear()
    yield
    fp4_experts.fp4_kernel.cache_clear()
    fp4_experts._map_of.cache_clear()


def test_it_equals_torch() -> None:
    """With a norm, biases, a clamped gate and a residual. Ranks add up; each may have both of the chosen, or none."""
    case = CASES["gpt-oss"]
    coded, dense = coded_experts(case, MXFP4, BF16)
    room, x = room_for(case, BF16), torch.randn(1, HIDDEN).to(BF16)
    out, residual, norm = torch.full_like(x, torch.nan), torch.randn_like(x), torch.rand(HIDDEN) + 0.5
    _run(coded, room, x, residual, out, norm)
    normed = torch.nn.functional.rms_norm(x.float(), [HIDDEN], norm, 1e-6).to(BF16)
    expected = in_torch(normed, dense, room, room.logits[:1, : len(dense.router)]) + residual.float()
    assert relative_error(out, expected) < 6e-3
    total = residual.clone()
    for own in (slice(0, 3), slice(3, 6)):
        _run(_part(coded, own), room, x, total, total, norm)
    assert relative_error(total, expected) < 6e-3


def _part(whole: Experts, own: slice) -> Experts:
    """Of some of the experts."""
    count = len(whole.layer.down.experts)

    def rows(held: Any) -> Any:
        return held.view(count, -1, *held.shape[1:])[own].flatten(0, 1)

    def some(stack: WeightStack) -> WeightStack:
        shape = (own.stop - own.start, *stack.shape[1:])
        assert stack.scales is not None, "codes have scales"
        return replace(stack, shape=shape, data=rows(stack.data), scales=rows(stack.scales))

    gate_up, down = (ExpertStack(stack.experts[own]) for stack in (whole.layer.gate_up, whole.layer.down))
    layer = replace(whole.layer, gate_up=gate_up, down=down, first_expert=own.start)
    biases = (None if each is None else rows(each) for each in (whole.gate_up_bias, whole.down_bias))
    gate_up_bias, down_bias = biases
    return replace(
        whole, layer=layer, gate_up=some(whole.gate_up), down=some(whole.down), gate_up_bias=gate_up_bias,
        down_bias=down_bias,
    )  # fmt: skip


def _run(own: Experts, room: Room, x: Any, residual: Any, out: Any, norm: Any) -> None:
    kernel = Fp4Experts.of(own, room, FIVE_BLOCKS, x.dtype)
    assert kernel is not None
    kernel.run(x, residual, out, norm=norm, eps=1e-6)
