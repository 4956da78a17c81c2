"""Launches csrc/cuda/expert_router.cu and experts.cu: a mixture of experts for a few rows.

    router     norm, logits            -> logits, and the rows as the products read them
    gate_up    choice, first product   -> gated
    down       choice, second product, weighted sum, residual

`expert_format.py` says which mixtures they take. One row often has kernels of its own (one_row_experts.py,
fp4_experts.py).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import product

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.expert_arguments import ProductArguments
from octavo.kernels.cuda_cpp.expert_format import (
    BITS,
    COMPUTERS,
    FORMATS,
    GATES,
    TILE_ROWS,
    Ring,
    choice_macros,
    tile_rows,
)
from octavo.kernels.cuda_cpp.expert_routing import RouterVariant, route, router_kernel, routing_arguments
from octavo.kernels.cuda_cpp.fp4_experts import Fp4Experts, Fp4Variant, fp4_kernel
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.one_row_experts import OneRowExperts, one_row_kernel
from octavo.kernels.cuda_cpp.one_row_format import OneRowVariant
from octavo.kernels.cuda_cpp.quantized_weight import address, element
from octavo.kernels.scaled import Code
from octavo.kernels.triton.experts.mixture import Experts
from octavo.kernels.triton.experts.room import Room


@dataclass(frozen=True, slots=True)
class Variant:
    """What a product is compiled for. group: inputs that share a scale, at most a span's; 0: all. rows: of a tile."""

    dtype: torch.dtype
    code: Code | None
    group: int
    has_zeros: bool
    is_down: bool
    rows: int
    num_experts: int
    is_grouped: bool
    ring: Ring
    computers: int = COMPUTERS

    @classmethod
    def of(cls, experts: Experts, rows: int, *, is_down: bool, dtype: torch.dtype) -> Variant:
        weight, routing = experts.down if is_down else experts.gate_up, experts.layer.routing
        bits = BITS[weight.code]
        is_whole = weight.code is None or weight.scales_outputs
        return cls(
            dtype, weight.code, 0 if is_whole else min(weight.group, 1024 // bits), weight.zeros is not None, is_down,
            rows, *choice_macros(routing), Ring.of(bits, weight.shape[2], rows, 1 if is_down else 2),
        )  # fmt: skip

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "ELEMENT": element(self.dtype),
            "FORMAT": FORMATS[self.code],
            "GROUP": self.group,
            "HAS_ZEROS": int(self.has_zeros),
            "IS_DOWN": int(self.is_down),
            "ROWS": self.rows,
            "EXPERTS": self.num_experts,
            "IS_GROUPED": int(self.is_grouped),
            "COMPUTERS": self.computers,
            "TEAM": self.ring.team,
            "SPANS": self.ring.spans,
            "ENTRIES": self.ring.entries,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("experts", macros, gpu.capability)

    @property
    def num_threads(self) -> int:
        return self.computers * 32 + 32


@cache
def _kernel(variant: Variant, gpu: GPU) -> tuple[Kernel, int]:
    """And the bytes of shared memory that it needs."""
    kernel = Kernel(variant.compile(gpu), "octavo_experts")
    needed = kernel.number("octavo_shared_bytes")
    num_bytes = variant.ring.shared_bytes(variant.rows, 1 if variant.is_down else 2, needed)
    kernel.allow_shared(num_bytes)
    kernel.prefer_shared()
    return kernel, num_bytes


def _product(variant: Variant | Fp4Variant | OneRowVariant, gpu: GPU) -> tuple[Kernel, int]:
    if isinstance(variant, OneRowVariant):
        return one_row_kernel(variant, gpu)
    return fp4_kernel(variant, gpu) if isinstance(variant, Fp4Variant) else _kernel(variant, gpu)


@cache
def _prepare(router: RouterVariant, kinds: tuple[Variant | Fp4Variant | OneRowVariant, ...], gpu: GPU) -> None:
    """Compile them all at once, for all layers alike, and load them; threads suffice, since each nvcc is a process."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda kind: kind.compile(gpu), (router, *kinds)))
    router_kernel(router, gpu)
    for kind in kinds:
        _product(kind, gpu)


@dataclass(frozen=True, eq=False)
class FewRowExperts:
    """A layer's kernels for up to `most_rows` rows."""

    experts: Experts
    room: Room
    gpu: GPU
    dtype: torch.dtype

    def __post_init__(self) -> None:
        counts = TILE_ROWS if self._one_row is None else TILE_ROWS[1:]
        kinds = (self._variant(rows, is_down=is_down) for rows, is_down in product(counts, (False, True)))
        one: tuple[Fp4Variant | OneRowVariant, ...] = ()
        if isinstance(self._one_row, Fp4Experts):
            one = self._one_row.variants
        elif self._one_row is not None:
            one = (self._one_row.variant,)
        _prepare(self._router_variant(), (*kinds, *one), self.gpu)

    @cached_property
    def _one_row(self) -> OneRowExperts | Fp4Experts | None:
        """What computes one row's mixture, with its router."""
        given = self.experts, self.room, self.gpu, self.dtype
        return OneRowExperts.of(*given) or Fp4Experts.of(*given)

    def run(
        self, x: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor,
        *, norm: torch.Tensor | None = None, eps: float = 1e-6,
    ) -> None:  # fmt: skip
        """out [T, H] = the mixture of x [T, H] (+ residual, which may be out; out must not be x unless there is a
        norm). norm: x is RMSNormed first."""
        if len(x) == 1 and self._one_row is not None:
            self._one_row.run(x, residual, out, norm=norm, eps=eps)
            return
        num_rows, (hidden, inner) = len(x), self.experts.gate_up.shape[2:] + self.experts.down.shape[2:]
        rows, gated = self.room.few_rows(hidden, inner, num_rows, self.experts.layer.routing.num_chosen)
        is_written = norm is not None or self.experts.gate_up.code is not None
        self._route(x, rows if is_written else None, norm, eps)
        self._multiply(rows if is_written else x, None, gated, num_rows, is_down=False)
        self._multiply(gated, residual, out, num_rows, is_down=True)

    def _router_variant(self) -> RouterVariant:
        return RouterVariant(self.dtype, self.experts.gate_up.code, -(-self.experts.router.shape[1] // 1024))

    def _variant(self, rows: int, *, is_down: bool) -> Variant:
        return Variant.of(self.experts, rows, is_down=is_down, dtype=self.dtype)

    def _route(self, x: torch.Tensor, out: torch.Tensor | None, norm: torch.Tensor | None, eps: float) -> None:
        route(x, self._router_variant(), self.experts, self.room, out, gpu=self.gpu, norm=norm, eps=eps)

    def _multiply(
        self, x: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor, num_rows: int, *, is_down: bool
    ) -> None:
        one, halves = self.experts, 1 if is_down else 2
        weight, bias = (one.down, one.down_bias) if is_down else (one.gate_up, one.gate_up_bias)
        variant, gate = self._variant(tile_rows(num_rows), is_down=is_down), one.layer.gate
        kernel, shared_bytes = _product(variant, self.gpu)
        own, outputs, depth = weight.shape
        launch = ProductArguments(
            routing_arguments(one, self.room, num_rows), x.data_ptr(), address(weight.scales), address(weight.zeros),
            address(bias), address(residual), out.data_ptr(), x.stride(0),
            0 if residual is None else residual.stride(0), out.stride(0), outputs // halves, depth, GATES[gate.kind],
            weight.group or depth, 1 if weight.scales is None else weight.scales.shape[1], weight.row_block,
            gate.alpha, gate.limit,
        )  # fmt: skip
        shape = own * halves, outputs // halves, depth * BITS[weight.code] // 8
        tensor_map = _map_of(weight.data.data_ptr(), shape, variant.ring.spans, halves)
        kernel.launch(
            self.gpu.num_multiprocessors, variant.num_threads, (launch, tensor_map),
            shared_bytes=shared_bytes, stream=_stream(), chained=self.gpu.chains,
        )  # fmt: skip


def _stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


@lru_cache(maxsize=4096)
def _map_of(address: int, shape: tuple[int, int, int], spans: int, halves: int) -> TensorMap:
    return TensorMap.of_stack(address, shape, box_rows=8, box_spans=spans, box_matrices=halves)
