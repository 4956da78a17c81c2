"""A mixture of experts handed to C++: its spec, and its matrices, each packed before the next is read."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int64, c_void_p
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from octavo.errors import OutOfMemoryError
from octavo.kernels.cpu.library import MixtureSpec, ThreadPool, address, check
from octavo.kernels.cpu.weights import CpuWeights
from octavo.kernels.mixture import GATE_KINDS, GROUP_SCORES, SCORINGS, Mixture
from octavo.kernels.parameters import Linear
from octavo.kernels.tensor import DTYPES

if TYPE_CHECKING:
    from octavo.distributed.placed_experts import PlacedExperts

_ROUTER, _GATE_UP, _DOWN = range(3)  # the order of C++'s MixtureProduct


def mixture_spec(layer: Mixture, bias: int | None = None, placed: PlacedExperts | None = None) -> MixtureSpec:
    """bias: its address."""
    routing, gate = layer.routing, layer.gate
    slots: tuple[int | None, int | None, int] = None, None, 0
    if placed is not None:
        loads, places = placed.arrays(layer.name)
        slots = loads.data_ptr(), places.data_ptr(), places.shape[1]
    return MixtureSpec(
        *(routing.num_experts, routing.num_chosen, routing.num_groups, routing.top_groups),
        *(SCORINGS.index(routing.scoring), GROUP_SCORES.index(routing.group_score), int(routing.renormalises)),
        *(routing.scale, bias, GATE_KINDS.index(gate.kind), gate.alpha, gate.limit),
        *(layer.down.out_features, layer.down.in_features, layer.first_expert, layer.num_own, *slots),
    )


def pack_mixture(
    library: ctypes.CDLL,
    pool: ThreadPool,
    program: int,
    weights: CpuWeights,
    layer: Mixture,
    activation_bytes: int,
    placed: PlacedExperts | None,
) -> c_void_p:
    """The program's mixture, with its weights. placed: if its experts change places."""
    bias = None if layer.bias is None else weights.vector(layer.bias)
    made = library.octavo_program_new_mixture(program, byref(mixture_spec(layer, bias, placed)))
    if made is None:
        raise OutOfMemoryError(f"{layer.name} found no memory; choose a smaller model")
    packed = c_void_p(made)

    def pack(product: int, expert: int, linear: Linear) -> None:
        bias = weights.vector(*linear.biases)
        first = 0
        for matrix in weights.matrices(linear):
            code = library.octavo_mixture_pack(
                *(packed, pool.handle, product, expert, DTYPES.index(matrix.dtype), address(matrix.data)),
                *(matrix.rows, matrix.cols, activation_bytes, None if bias is None else bias + 4 * first),
            )
            check(library, code, f"packing {linear.name} for the cpu backend")
            first += matrix.rows

    pack(_ROUTER, 0, layer.router)
    for product, stack in ((_GATE_UP, layer.gate_up), (_DOWN, layer.down)):
        for expert, linear in enumerate(stack.experts):
            pack(product, expert, linear)
    if placed is not None:
        slots = range(layer.num_own)
        placed.hold_arrays(layer.name, [_bytes_of(library, packed, weights, layer, slot) for slot in slots])
    return packed


def _bytes_of(
    library: ctypes.CDLL, mixture: c_void_p, weights: CpuWeights, layer: Mixture, slot: int
) -> list[NDArray[np.uint8]]:
    """What a slot has of its expert: packed matrices and biases, where C++ reads them."""
    size, found = c_int64(), []
    for product, stack in ((_GATE_UP, layer.gate_up), (_DOWN, layer.down)):
        for part in count():
            address = library.octavo_mixture_weight(mixture, product, slot, part, byref(size))
            if address is None:
                break
            found.append(np.ctypeslib.as_array((ctypes.c_uint8 * size.value).from_address(address)))
        found += [weights.held(bias) for bias in stack.experts[slot].biases]
    return found
