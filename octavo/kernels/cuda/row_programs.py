"""The programs of one pass with a row per sequence, by the number of rows; a step takes the first that has room.

1          as much fused as the products' tilings allow, down to five kernels a layer; off Hopper also 2 and 4
up to 8    on Hopper, if matrices are quantised: what their kernel takes is fused, too; 2 to 4 rows have their own
up to 256  on Hopper: products in tiles, with the gate; the next norm sums their parts. From 5 rows on, those that
           become fp8 before a product do so in the kernel that gives them
up to 64   off Hopper: the product adds the residual
more       cuBLAS products, and kernels between them

A deterministic engine has one program for any number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from octavo.kernels.cuda.program import Program
from octavo.kernels.cuda.shared import Shared
from octavo.kernels.cuda.sizes import FEW_QUANTIZED_ROWS, TILED_ROWS
from octavo.kernels.device import StepLimits
from octavo.kernels.program.fuse import Fusions, fuse
from octavo.kernels.program.model_recording import ModelRecording
from octavo.kernels.program.recorder import Recording
from octavo.kernels.triton.linear.skinny_linear import choose_tiling

VECTOR_ROWS = (1, 2, 4)
MAX_SKINNY_ROWS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Passes:
    """The programs of a model, for steps of one kind: with adapters, or without."""

    chunks: Program
    decodes: Sequence[Program]
    heads: Sequence[Program]

    @classmethod
    def of(cls, model: ModelRecording, shared: Shared, limits: StepLimits, parts: torch.Tensor | None) -> Passes:
        """parts: see Program; None off Hopper."""
        seqs, is_fused = limits.max_num_seqs, shared.see is None and not shared.is_fixed
        fusions = Fusions(all_reduce=shared.fuses_sums, adapters=is_fused, mixture_norm=is_fused)
        if is_fused and shared.quantized is not None:
            quantises, deals = shared.quantized.quantises, shared.quantized.deals
            most = limits.max_num_tokens
            fusions = replace(fusions, quantises=quantises(most), deals=deals(most))
        body = fuse(model.body if model.gives_logits else model.whole, fusions)
        return cls(
            Program(body, shared, limits.max_num_tokens),
            programs_by_rows(model.whole, shared, seqs, parts),
            programs_by_rows(model.head, shared, seqs, parts) if model.gives_logits else [],
        )


WIDEST_NORMED = 65536  # outputs of a product that takes a norm


def programs_by_rows(
    recording: Recording, shared: Shared, max_num_seqs: int, parts: torch.Tensor | None
) -> list[Program]:
    """By ascending number of rows. parts: see Program; None off Hopper."""

    def program(num_rows: int, fusions: Fusions, room: torch.Tensor | None = None) -> Program:
        is_fused, routes_norm = shared.see is None and not shared.is_fixed, partial(shared.routes_norm, num_rows)
        fusions = replace(fusions, all_reduce=shared.fuses_sums, adapters=is_fused, routes_norm=routes_norm)
        if shared.quantized is not None:
            fusions = replace(fusions, fuses=shared.quantized.fuses(num_rows))
            if is_fused:
                leaves, scales = num_rows <= TILED_ROWS[-1], shared.attention.scales_projection
                fusions = replace(fusions, leaves_scales=leaves, scales_projection=scales)
                quantises, deals = shared.quantized.quantises(num_rows), shared.quantized.deals(num_rows)
                fusions = replace(fusions, quantises=quantises, deals=deals)
        return Program(fuse(recording, fusions), shared, min(num_rows, max_num_seqs), room)

    if shared.see is not None or shared.is_fixed:  # op by op, as the model calls them: nothing is fused
        return [program(max_num_seqs, Fusions())]
    programs = []
    for rows in VECTOR_ROWS if parts is None else VECTOR_ROWS[:1]:
        takes = _takes_vectors(rows)
        fusions = Fusions(
            attention=True, residual=True, takes_norm=_takes_norms(takes), takes_gate=takes, adds_both=takes
        )
        programs.append(program(rows, fusions))
    if parts is None:
        programs.append(program(MAX_SKINNY_ROWS, Fusions(attention=True, residual=True, mixture_norm=True)))
    else:
        few = FEW_QUANTIZED_ROWS if shared.quantized is not None else ()
        for rows in (*few, *TILED_ROWS):
            fusions = Fusions(
                attention=True, residual=True, mixture_norm=True, parts=True, takes_gate=_takes_gates(rows)
            )
            programs.append(program(rows, fusions, parts))
    programs.append(program(max_num_seqs, Fusions(attention=True, mixture_norm=True)))
    return programs


def first_for(num_rows: int, programs: Sequence[Program]) -> Program:
    return next(program for program in programs if num_rows <= program.max_rows)


def _takes_vectors(num_rows: int) -> Callable[[int, int], bool]:
    """Whether a product of this many rows has a tiling that takes a norm and a gate."""

    def is_vector(columns: int, depth: int) -> bool:
        tiling = choose_tiling(num_rows, columns, depth)
        return tiling is not None and tiling.depth == 0

    return is_vector


def _takes_norms(takes_gate: Callable[[int, int], bool]) -> Callable[[int, int], bool]:
    """Whether a norm is free there. Every thread block reads its weight, which costs a vocabulary more than a kernel
    for the norm, where the kernels before have left the L1 cache small."""
    return lambda columns, depth: columns <= WIDEST_NORMED and takes_gate(columns, depth)


def _takes_gates(num_rows: int) -> Callable[[int, int], bool]:
    """Whether a product of this many rows has a tile that takes a gate."""
    from octavo.kernels.triton.linear.tile_linear import choose_tile

    return lambda columns, depth: choose_tile(num_rows, columns, depth, gated=True) is not None
