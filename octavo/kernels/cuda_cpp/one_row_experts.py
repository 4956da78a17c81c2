"""Launches csrc/cuda/one_row_experts.cu: one row's mixture, with the norm before it.

`one_row_format.py` says what it takes.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_int, c_void_p
from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.expert_arguments import RoutingArguments
from octavo.kernels.cuda_cpp.expert_routing import routing_arguments
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.one_row_format import OUTPUTS, OneRowVariant, Tiling, takes
from octavo.kernels.cuda_cpp.quantized_weight import address
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.experts.mixture import Experts
from octavo.kernels.triton.experts.room import Room


class _Launch(Structure):
    """csrc/cuda/one_row_kind.cuh."""

    _fields_ = (
        ("routing", RoutingArguments),
        *((name, c_void_p) for name in ("x", "router", "norm", "first_scales", "second_scales")),
        *((name, c_void_p) for name in ("first_bias", "second_bias", "residual", "out", "logits")),
        *((name, c_void_p) for name in ("posted_logits", "posted_pairs", "count")),
        *((name, c_int) for name in ("hidden", "inner")),
        *((name, c_float) for name in ("eps", "alpha", "limit")),
    )


@cache
def one_row_kernel(variant: OneRowVariant, gpu: GPU) -> tuple[Kernel, int]:
    """And the bytes of shared memory that it needs."""
    kernel = Kernel(variant.compile(gpu), "octavo_one_row_experts")
    return kernel, kernel.take_shared()


@dataclass(frozen=True, slots=True, eq=False)
class OneRowExperts:
    """A layer's mixture of one row."""

    experts: Experts
    room: Room
    gpu: GPU
    variant: OneRowVariant

    @classmethod
    def of(cls, experts: Experts, room: Room, gpu: GPU, dtype: torch.dtype) -> OneRowExperts | None:
        """None: the kernel does not take them."""
        if not takes(experts, gpu, dtype) or (tiling := Tiling.of(experts, gpu)) is None:
            return None
        return cls(experts, room, gpu, OneRowVariant.of(experts, dtype, tiling))

    def run(
        self, x: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor, *, norm: torch.Tensor | None,
        eps: float,
    ) -> None:  # fmt: skip
        """As `FewRowExperts.run`."""
        experts, tiling = self.experts, self.variant.tiling
        layer, down = experts.layer, experts.down
        kernel, shared_bytes = one_row_kernel(self.variant, self.gpu)
        _, hidden, inner = down.shape
        logits, pairs, count = self.room.posted_words(layer.routing.num_experts)
        launch = _Launch(
            routing_arguments(experts, self.room, 1), x.data_ptr(), experts.router.data_ptr(), address(norm),
            address(experts.gate_up.scales), address(down.scales), address(experts.gate_up_bias),
            address(experts.down_bias), address(residual), out.data_ptr(), self.room.logits.data_ptr(), logits, pairs,
            count, hidden, inner, eps, layer.gate.alpha, layer.gate.limit,
        )  # fmt: skip
        maps = _map_of(experts.gate_up, 2, tiling.first[0]), _map_of(down, 1, tiling.second[0])
        kernel.launch(
            self.gpu.num_multiprocessors, tiling.warpgroups * 128 + 32, (launch, (TensorMap * len(maps))(*maps)),
            shared_bytes=shared_bytes, stream=torch.cuda.current_stream().cuda_stream, chained=self.gpu.chains,
        )  # fmt: skip


def _map_of(weight: WeightStack, halves: int, spans: int) -> TensorMap:
    own, outputs, depth = weight.shape
    shape = own * halves, outputs // halves, depth * weight.data.element_size()
    return _map(weight.data.data_ptr(), shape, spans)


@lru_cache(maxsize=4096)
def _map(data: int, shape: tuple[int, int, int], spans: int) -> TensorMap:
    return TensorMap.of_stack(data, shape, box_rows=OUTPUTS, box_spans=spans, box_matrices=1)
