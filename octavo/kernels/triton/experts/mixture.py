"""The op `mixture` on a GPU: three launches for one row, four for more.

one row      route | gate_up of the chosen | down of the chosen, their weighted sum and the residual
more         route, with each expert's list of rows | grouped gate_up | grouped down | weighted sum, residual and the
             next norm; the products in CUDA C++ where experts have many rows each (grouped_linear.cu, grouped_codes.cu)

Experts may be codes with scales. Before each grouped product of many rows with fp8 experts, whose scales are of
outputs, a launch makes the rows fp8, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from octavo.kernels.cuda.sizes import FEW_MIXTURE_ROWS
from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.cuda_cpp.grouped_codes import mixture_of_codes, takes_codes
from octavo.kernels.cuda_cpp.grouped_linear import WideProducts
from octavo.kernels.mixture import ExpertStack, Gate, Mixture
from octavo.kernels.parameters import Linear
from octavo.kernels.triton.coded.coded_format import format_of
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.elementwise.norm import rms_norm
from octavo.kernels.triton.experts.combine import NextNorm, combine
from octavo.kernels.triton.experts.grouped_linear import FIXED, grouped_linear
from octavo.kernels.triton.experts.one_row import one_row_down, one_row_gate_up
from octavo.kernels.triton.experts.placing import Placing
from octavo.kernels.triton.experts.room import Room
from octavo.kernels.triton.experts.routing import route


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """A layer's weights on the device. router [E, H], gate_up [own, 2F, H], down [own, H, F], and their biases."""

    layer: Mixture
    router: torch.Tensor
    router_bias: torch.Tensor | None
    bias: torch.Tensor | None
    gate_up: WeightStack
    gate_up_bias: torch.Tensor | None
    down: WeightStack
    down_bias: torch.Tensor | None

    @classmethod
    def of(cls, layer: Mixture, weights: DeviceWeights) -> Experts:
        """Uploads them, each expert's to its place in the stack."""

        router, bias = weights.stacked(*layer.router.parts), layer.bias
        stacks = [_stack(each, weights) for each in (layer.gate_up, layer.down)]
        if layer.slots is not None:  # experts with other scales may come
            stacks = [replace(each, scale_types=frozenset()) for each in stacks]
        return cls(
            layer,
            *(router, _biases(layer.router, weights), None if bias is None else weights.vector(bias)),
            *(stacks[0], _biases(layer.gate_up, weights)),
            *(stacks[1], _biases(layer.down, weights)),
        )

    @property
    def slots(self) -> list[list[torch.Tensor]]:
        """The bytes of each slot's expert."""
        stacks = [each for of in (self.gate_up, self.down) for each in (of.data, of.scales, of.zeros, of.order)]
        held = [each for each in (*stacks, self.gate_up_bias, self.down_bias) if each is not None]
        rows = [each.view(self.layer.num_own, -1).view(torch.uint8) for each in held]
        return [[each[slot] for each in rows] for slot in range(self.layer.num_own)]


def _stack(of: ExpertStack, weights: DeviceWeights) -> WeightStack:
    form, num_experts = format_of(of.parts), len(of.experts)
    if form is not None:
        return weights.coded(of.parts, form).split(num_experts)
    matrices = weights.stacked(*of.parts)
    return WeightStack.dense(matrices.view(num_experts, -1, matrices.shape[-1]))


def _biases(of: Linear | ExpertStack, weights: DeviceWeights) -> torch.Tensor | None:
    return weights.stacked(*of.biases) if of.biases else None


def mixture(
    x: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor, experts: Experts, room: Room, *,
    is_fixed: bool = False, chained: bool, placing: Placing | None = None, wide: WideProducts | None = None,
    norm: NextNorm | None = None,
) -> None:  # fmt: skip
    """out [T, H] = the mixture of x [T, H] (+ residual, which may be out; out must not be x). is_fixed: the same
    kernels for any number of rows, so that a row's result does not depend on the others. placing: of experts that
    change places. wide: takes the products whose experts have many rows each. norm: of out; in the last launch, but for
    one row."""
    layer, num_rows = experts.layer, len(x)
    assert num_rows <= room.max_rows, f"{num_rows} rows in room for {room.max_rows}"
    num_chosen, first, is_alone = layer.routing.num_chosen, layer.first_expert, num_rows == 1 and not is_fixed
    route(
        x, experts.router, experts.router_bias, experts.bias, layer, room, has_lists=not is_alone, is_fixed=is_fixed,
        chained=chained, placing=placing,
    )  # fmt: skip
    if is_alone:
        one_row_gate_up(
            x,
            experts.gate_up,
            experts.gate_up_bias,
            room,
            layer.gate,
            num_chosen=num_chosen,
            first_expert=first,
            chained=chained,
        )
        one_row_down(
            experts.down,
            experts.down_bias,
            residual,
            out,
            room,
            num_chosen=num_chosen,
            first_expert=first,
            chained=chained,
        )
        if norm is not None:
            rms_norm(out, *norm, chained=chained)
        return
    num_pairs, inner, hidden = num_rows * num_chosen, layer.down.in_features, x.shape[1]
    end = partial(
        combine, residual, out, room, num_chosen=num_chosen, first_expert=first, num_own=layer.num_own,
        chained=chained, norm=norm,
    )  # fmt: skip
    if wide is not None and takes_codes(experts.gate_up, experts.down, num_pairs, num_chosen):
        results = room.results[: num_pairs * hidden].view(num_pairs, hidden)
        products = (experts.gate_up, experts.gate_up_bias), (experts.down, experts.down_bias)
        mixture_of_codes(x, *products, room, results, gate=layer.gate, num_chosen=num_chosen, gpu=wide.gpu)
        end()
        return
    gated = room.gated[: num_pairs * inner].view(num_pairs, inner)
    results = room.results[: num_pairs * hidden].view(num_pairs, hidden)
    is_many = num_rows > FEW_MIXTURE_ROWS and not is_fixed

    def multiply(
        rows: torch.Tensor, weight: WeightStack, bias: torch.Tensor | None, to: torch.Tensor, rows_of: int,
        gate: Gate | None,
    ) -> None:  # fmt: skip
        rows, row_scales = room.as_codes(rows, weight, chained=chained) if is_many else (rows, None)
        if wide is not None and wide.takes(weight, num_pairs, row_scales):
            wide.run(rows, weight, bias, to, room, rows_of=rows_of, row_scales=row_scales, gate=gate)
            return
        grouped_linear(
            rows, weight, bias, to, room, num_pairs=num_pairs, rows_of=rows_of, row_scales=row_scales, gate=gate,
            tile=FIXED if is_fixed else None, chained=chained,
        )  # fmt: skip

    multiply(x, experts.gate_up, experts.gate_up_bias, gated, num_chosen, layer.gate)
    multiply(gated, experts.down, experts.down_bias, results, 1, None)
    end()
