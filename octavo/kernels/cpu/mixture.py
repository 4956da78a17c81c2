"""A mixture of experts handed to C++: its spec, and its matrices, each packed before the next is read."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_void_p

from octavo.errors import OutOfMemoryError
from octavo.kernels.cpu.library import MixtureSpec, ThreadPool, address, check
from octavo.kernels.cpu.weights import CpuWeights
from octavo.kernels.mixture import GATE_KINDS, GROUP_SCORES, SCORINGS, Mixture
from octavo.kernels.parameters import Linear
from octavo.kernels.tensor import DTYPES

_ROUTER, _GATE_UP, _DOWN = range(3)  # the order of C++'s MixtureProduct


def mixture_spec(layer: Mixture, bias: int | None = None) -> MixtureSpec:
    """bias: its address."""
    routing, gate = layer.routing, layer.gate
    return MixtureSpec(
        *(routing.num_experts, routing.num_chosen, routing.num_groups, routing.top_groups),
        *(SCORINGS.index(routing.scoring), GROUP_SCORES.index(routing.group_score), int(routing.renormalises)),
        *(routing.scale, bias, GATE_KINDS.index(gate.kind), gate.alpha, gate.limit),
        *(layer.down.out_features, layer.down.in_features, layer.first_expert, layer.num_own),
    )


def pack_mixture(
    library: ctypes.CDLL, pool: ThreadPool, program: int, weights: CpuWeights, layer: Mixture, activation_bytes: int
) -> c_void_p:
    """The program's mixture, with its weights."""
    bias = None if layer.bias is None else weights.vector(layer.bias)
    made = library.octavo_program_new_mixture(program, byref(mixture_spec(layer, bias)))
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
    return packed
