"""The router of a mixture for any number of rows: logits, choices that follow from them, and each expert's list."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, relative_error

from octavo.kernels.cuda.driver import GPU  # isort: skip
from octavo.kernels.mixture import Mixture, Routing  # isort: skip
from octavo.kernels.reference.mixture import choose  # isort: skip
from octavo.kernels.triton.experts.room import Room  # isort: skip
from octavo.kernels.triton.experts.routing import route  # isort: skip
from octavo.testing import made_parameters  # isort: skip

HIDDEN = 328 if ON_GPU else 72
CASES = {
    "128 experts": Routing(num_experts=128, num_chosen=8),
    "100 experts": Routing(num_experts=100, num_chosen=6, renormalises=False, scale=1.5),
    "groups": Routing(
        num_experts=256,
        num_chosen=8,
        scoring="sigmoid",
        scale=2.5,
        num_groups=8,
        top_groups=4,
        group_score="sum_of_two",
    ),
    "32 experts": Routing(num_experts=32, num_chosen=4),
}
#: of each tile, with a last one that is not full
NUM_ROWS = [1, 31, 33, 600, 1000, 3000, 9000] if ON_GPU else [2, 35]


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32] if ON_GPU else [torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_choices_follow_from_logits(name: str, dtype: torch.dtype, num_rows: int) -> None:
    layer, room = made(CASES[name], num_rows)
    x, router = drawn(dtype, num_rows, layer)
    has_biases = name in ("groups", "32 experts")
    router_bias, bias = (torch.randn(len(router), device=DEVICE) / 8 if has_biases else None for _ in range(2))
    for is_fixed in (False, True):
        route(
            x, router, None if router_bias is None else router_bias.to(dtype), bias, layer, room, has_lists=True,
            is_fixed=is_fixed, chained=ON_GPU,
        )  # fmt: skip
        logits = room.logits[:num_rows, : len(router)].clone()
        assert relative_error(logits, x.double() @ router.double().T) < 1e-5
        if router_bias is not None:
            logits += router_bias.to(dtype).float()
        check_choices(room, layer, logits, bias)
        check_lists(room, layer, num_rows)


def test_equal_experts_are_chosen_in_order() -> None:
    layer, room = made(CASES["128 experts"], 33)
    x, router = drawn(torch.float32, 33, layer)
    route(x, torch.zeros_like(router), None, None, layer, room, has_lists=True, is_fixed=False, chained=False)
    assert (room.ids.view(33, 8).cpu() == torch.arange(8)).all()
    assert room.counts.tolist() == [33] * 8 + [0] * 120


def test_a_ranks_lists_are_of_its_experts() -> None:
    layer, room = made(CASES["128 experts"], 40)
    x, router = drawn(torch.float32, 40, layer)
    for own in (slice(0, 32), slice(96, 128)):
        gate_up, down = (replace(stack, experts=stack.experts[own]) for stack in (layer.gate_up, layer.down))
        part = replace(layer, gate_up=gate_up, down=down, first_expert=own.start)
        route(x, router, None, None, part, room, has_lists=True, is_fixed=False, chained=False)
        check_lists(room, part, 40)


def made(routing: Routing, num_rows: int) -> tuple[Mixture, Room]:
    layer = made_parameters.mixture(routing, HIDDEN, 32)
    room = Room.of([layer], num_rows, torch.float32, DEVICE, GPU("made", (9, 0), 1 << 34, 1))
    assert room is not None
    return layer, room


def drawn(dtype: torch.dtype, num_rows: int, layer: Mixture) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shapes = (num_rows, HIDDEN), (layer.routing.num_experts, HIDDEN)
    x, router = (torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes)
    return x, router / 8


def check_choices(room: Room, layer: Mixture, logits: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Of nearly equal experts a choice may take the other."""
    best, weights = choose(logits, bias, layer.routing)
    ids, ours = (each[: best.numel()].view(best.shape) for each in (room.ids, room.weights))
    is_same = (ids == best).all(1)
    assert is_same.float().mean() > 0.99
    torch.testing.assert_close(ours[is_same], weights[is_same], atol=1e-6, rtol=1e-5)


def check_lists(room: Room, layer: Mixture, num_rows: int) -> None:
    """And leaves them empty, as the end of a mixture does."""
    local = room.ids[: num_rows * layer.routing.num_chosen].long() - layer.first_expert
    for expert in range(layer.num_own):
        pairs = (local == expert).nonzero().flatten()
        assert int(room.counts[expert]) == len(pairs)
        assert torch.equal(room.order[expert, : len(pairs)].sort().values, pairs.int())
    assert not room.arrived.any()
    room.counts.zero_()
