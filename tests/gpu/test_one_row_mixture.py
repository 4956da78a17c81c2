"""One row's mixture in one kernel, against torch: at a large model's shape, and with every way to choose."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, relative_error

from octavo.kernels.cuda.driver import GPU, find_gpu  # isort: skip
from octavo.kernels.cuda_cpp.compile import find_nvcc  # isort: skip
from octavo.kernels.cuda_cpp.one_row_experts import OneRowExperts  # isort: skip
from octavo.kernels.mixture import Routing  # isort: skip
from octavo.kernels.scaled import ScaledFormat  # isort: skip
from octavo.kernels.triton.experts.mixture import Experts  # isort: skip
from octavo.kernels.triton.experts.room import Room  # isort: skip
from tests.gpu import test_coded_mixture, test_mixture  # isort: skip
from tests.gpu.test_coded_mixture import coded_experts  # isort: skip
from tests.gpu.test_mixture import (  # isort: skip
    CASES,
    HIDDEN,
    Case,
    in_torch,
    made,
    ranks_part,
    room_for,
)

FP8 = {"fp8": ScaledFormat("F8_E4M3", (1, 0)), "fp8, blocks": ScaledFormat("F8_E4M3", (128, 128))}
ROUNDING = 6e-3
FORMS = {"bfloat16": torch.bfloat16, "float16": torch.float16, **dict.fromkeys(FP8, torch.bfloat16)}


@pytest.mark.skipif(not ON_GPU or find_nvcc() is None, reason="needs a GPU and nvcc")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mixtral", "deepseek v2", "gpt-oss"])
def test_it_equals_torch(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (test_mixture, test_coded_mixture):
        monkeypatch.setattr(module, "HIDDEN", 2048)
        monkeypatch.setattr(module, "INNER", 768)
    gpu = find_gpu(0)
    assert gpu is not None
    own, dense = experts_in(form, name)
    room = room_for(CASES[name], FORMS[form])
    for _ in range(3):
        mixture_equals_torch(own, dense, room, gpu, FORMS[form])


ROUTINGS = {
    "softmax": Routing(num_experts=128, num_chosen=8),
    "not renormalised": Routing(num_experts=100, num_chosen=16, renormalises=False, scale=3.0),
    "sigmoid": Routing(num_experts=256, num_chosen=5, scoring="sigmoid", scale=2.5),
    "more than threads": Routing(num_experts=384, num_chosen=8),
}


@pytest.mark.skipif(not ON_GPU or find_nvcc() is None, reason="needs a GPU and nvcc")
@pytest.mark.parametrize("name", ROUTINGS)
def test_every_way_to_choose(name: str) -> None:
    """The mixture alone; ranks with some of the experts add up. Of experts with equal scores the first are chosen."""
    case, gpu = Case(ROUTINGS[name], has_bias=name == "sigmoid"), find_gpu(0)
    assert gpu is not None
    whole, room = made(case, torch.bfloat16), room_for(case, torch.bfloat16)
    whole.router[1::2] = whole.router[::2]
    if whole.bias is not None:
        whole.bias[1::2] = whole.bias[::2]
    half = case.routing.num_experts // 2
    x, norm = torch.randn(1, HIDDEN, device=DEVICE).bfloat16(), torch.rand(HIDDEN, device=DEVICE) + 0.5
    out, total = x.clone(), x.clone()
    run(whole, room, gpu, out, out, norm)
    normed = torch.nn.functional.rms_norm(x.float(), [HIDDEN], norm, 1e-6).bfloat16()
    expected = in_torch(normed, whole, room, room.logits[:1, : len(whole.router)])
    assert relative_error(out, x.float() + expected) < ROUNDING
    for own in (slice(0, half), slice(half, None)):
        run(ranks_part(whole, own), room, gpu, x, total, norm)
    assert relative_error(total, out) < ROUNDING


def run(own: Experts, room: Room, gpu: GPU, x: torch.Tensor, out: torch.Tensor, norm: torch.Tensor) -> None:
    kernel = OneRowExperts.of(own, room, gpu, x.dtype)
    assert kernel is not None
    kernel.run(x, out, out, norm=norm, eps=1e-6)


def experts_in(form: str, name: str) -> tuple[Experts, Experts]:
    """And the same with dense numbers."""
    if form in FP8:
        return coded_experts(CASES[name], FP8[form], torch.bfloat16)
    dense = made(CASES[name], FORMS[form])
    return dense, dense


def mixture_equals_torch(own: Experts, dense: Experts, room: Room, gpu: GPU, dtype: torch.dtype) -> None:
    """With a norm and a residual, in place, and without."""
    hidden, logits = own.down.shape[1], room.logits[:1, : len(own.router)]
    x, norm = torch.randn(1, hidden, device=DEVICE).to(dtype), torch.rand(hidden, device=DEVICE) + 0.5
    out, summed = torch.full_like(x, torch.nan), x.clone()
    kernel = OneRowExperts.of(own, room, gpu, dtype)
    assert kernel is not None
    kernel.run(x, None, out, norm=None, eps=1e-6)
    assert relative_error(out, in_torch(x, dense, room, logits)) < ROUNDING
    kernel.run(summed, summed, summed, norm=norm, eps=1e-6)
    normed = torch.nn.functional.rms_norm(x.float(), [hidden], norm, 1e-6).to(dtype)
    assert relative_error(summed, x.float() + in_torch(normed, dense, room, logits)) < ROUNDING
