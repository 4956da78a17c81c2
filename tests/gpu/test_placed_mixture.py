"""Mixtures whose experts are in slots: results are those of experts that stay, and rows that are no padding count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from octavo.distributed.expert_placement import places_of
from octavo.kernels.mixture import ExpertSlots
from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, relative_error

from octavo.kernels.scaled import ScaledFormat  # isort: skip
from octavo.kernels.triton.coded.weight_stack import WeightStack  # isort: skip
from octavo.kernels.triton.experts.mixture import Experts, mixture  # isort: skip
from octavo.kernels.triton.experts.placing import Placing  # isort: skip
from tests.gpu.test_coded_mixture import coded_experts  # isort: skip
from tests.gpu.test_mixture import CASES, DTYPES, HIDDEN, made, room_for  # isort: skip

FORMATS = [ScaledFormat("F8_E4M3", (128, 128)), ScaledFormat("U4", (1, 32), True), ScaledFormat("E2M1", (1, 32))]
SLOTS = [4, 1, 0, 2, 3, 4, 5, 0]  # of six experts, two of which have two


@pytest.mark.parametrize("num_rows", [1, 7, 40, 300] if ON_GPU else [1, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_slots_add_up_to_the_mixture(dtype: torch.dtype, num_rows: int) -> None:
    case = CASES["mixtral"]
    whole, room = made(case, dtype), room_for(case, dtype)
    x = torch.randn(num_rows, HIDDEN, device=DEVICE).to(dtype)
    expected = torch.empty_like(x)
    mixture(x, None, expected, whole, room, chained=False)
    chosen = room.ids[: 2 * num_rows].view(num_rows, 2).long().clone()
    places = torch.from_numpy(places_of(SLOTS, 6, 3)).to(DEVICE)
    num_real = num_rows - num_rows // 4
    lens = torch.zeros(num_rows, dtype=torch.int32, device=DEVICE)
    lens[:num_real] = 5
    wanted = (lens.cumsum(0, dtype=torch.int32) - 5).masked_fill(lens == 0, 0)
    end = torch.tensor([num_real], dtype=torch.int32, device=DEVICE)
    for real, ends in ((lens, False), (wanted[:num_real], False), (end, True)):
        total = torch.zeros(x.shape, device=DEVICE)
        for rank in range(2):
            loads = torch.zeros(6, dtype=torch.int64, device=DEVICE)
            out = torch.empty_like(x)
            placing = Placing(loads, places, real, ends)
            mixture(x, None, out, of_rank(whole, rank), room, chained=ON_GPU, placing=placing)
            total += out.float()
            assert loads.tolist() == torch.bincount(chosen[:num_real].flatten(), minlength=6).tolist()
            assert not room.counts.any()
        assert relative_error(total, expected) < TOLERANCE[dtype]
    copies = np.bincount(SLOTS)
    rows = np.arange(num_rows)[:, None]
    slots = room.ids[: 2 * num_rows].view(num_rows, 2).cpu().numpy()
    assert (np.array(SLOTS)[slots] == chosen.cpu().numpy()).all()
    place = np.array([SLOTS[:slot].count(expert) for slot, expert in enumerate(SLOTS)])
    assert (place[slots] == rows % copies[chosen.cpu().numpy()]).all(), "copies take turns by row"


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.label)
def test_a_slots_bytes_are_all_that_an_expert_has(form: ScaledFormat) -> None:
    """Two experts change places; biases, scales and zeros go with the codes."""
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    case = CASES["gpt-oss"] if form.code == "E2M1" else CASES["mixtral"]
    experts, _ = coded_experts(case, form, dtype)
    room, x = room_for(case, dtype), torch.randn(5, HIDDEN, device=DEVICE).to(dtype)
    before, after = torch.empty_like(x), torch.empty_like(x)
    mixture(x, None, before, experts, room, chained=False)
    first, last = experts.slots[0], experts.slots[5]
    for one, other in zip(first, last, strict=True):
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
    loads = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    places = torch.from_numpy(places_of([5, 1, 2, 3, 4, 0], 6, 1)).to(DEVICE)
    end = torch.tensor([5], dtype=torch.int32, device=DEVICE)
    mixture(x, None, after, experts, room, chained=False, placing=Placing(loads, places, end, ends=True))
    assert torch.equal(before, after)


def of_rank(whole: Experts, rank: int) -> Experts:
    """With the weights of the rank's four slots."""
    own = SLOTS[4 * rank : 4 * rank + 4]
    layer = replace(
        whole.layer,
        first_expert=4 * rank,
        slots=ExpertSlots(len(SLOTS), 3),
        gate_up=replace(whole.layer.gate_up, experts=tuple(whole.layer.gate_up.experts[expert] for expert in own)),
        down=replace(whole.layer.down, experts=tuple(whole.layer.down.experts[expert] for expert in own)),
    )
    stacks = {name: WeightStack.dense(getattr(whole, name).data[own].contiguous()) for name in ("gate_up", "down")}
    return replace(whole, layer=layer, **stacks)
