"""Launches csrc/cuda/expert_router.cu, and tells kernels that choose experts what they choose by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.expert_arguments import RouterArguments, RoutingArguments
from octavo.kernels.cuda_cpp.expert_format import BITS
from octavo.kernels.cuda_cpp.module import Kernel
from octavo.kernels.cuda_cpp.quantized_weight import address, element
from octavo.kernels.scaled import Code
from octavo.kernels.triton.experts.mixture import Experts
from octavo.kernels.triton.experts.room import Room

_THREADS = 512


@dataclass(frozen=True, slots=True)
class RouterVariant:
    """What the router is compiled for. code: of the first product. spans: of 64 inputs, of a warp."""

    dtype: torch.dtype
    code: Code | None
    spans: int

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "ELEMENT": element(self.dtype),
            "BITS": BITS[self.code],
            "IS_RAISED": int(self.code in ("E2M1", "F8_E4M3") and self.dtype == torch.bfloat16),
            "SPANS": self.spans,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("expert_router", macros, gpu.capability)


@cache
def router_kernel(variant: RouterVariant, gpu: GPU) -> Kernel:
    kernel = Kernel(variant.compile(gpu), "octavo_expert_router")
    kernel.prefer_shared()
    return kernel


def route(
    x: torch.Tensor, variant: RouterVariant, experts: Experts, room: Room, out: torch.Tensor | None, *, gpu: GPU,
    norm: torch.Tensor | None, eps: float,
) -> None:  # fmt: skip
    """The logits of x [T, H], to `room`. out: gets the rows as the products read them. norm: x is RMSNormed first."""
    router, logits = experts.router, room.logits
    launch = RouterArguments(
        x.data_ptr(), router.data_ptr(), address(norm), logits.data_ptr(), address(out), x.stride(0),
        0 if out is None else out.stride(0), *x.shape[:1], *router.shape, logits.stride(0), eps,
    )  # fmt: skip
    router_kernel(variant, gpu).launch(
        -(-len(router) // 8), _THREADS, (launch,), shared_bytes=0, chained=gpu.chains, grid_y=-(-len(x) // 16),
        stream=torch.cuda.current_stream().cuda_stream,
    )  # fmt: skip


def routing_arguments(experts: Experts, room: Room, num_rows: int) -> RoutingArguments:
    layer = experts.layer
    routing = layer.routing
    return RoutingArguments(
        room.logits.data_ptr(), address(experts.router_bias), address(experts.bias),
        room.ids.data_ptr(), room.weights.data_ptr(), room.logits.stride(0), num_rows, routing.num_experts,
        routing.num_chosen, layer.first_expert, layer.num_own, routing.scoring == "sigmoid", routing.renormalises,
        routing.num_groups, routing.top_groups, routing.group_score == "sum_of_two", routing.scale,
    )  # fmt: skip
