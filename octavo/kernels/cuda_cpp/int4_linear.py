"""Launches csrc/cuda/int4_linear.cu: a few rows times a weight of int4 (`quantized_weight.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.few_rows import Launch
from octavo.kernels.cuda_cpp.module import Kernel
from octavo.kernels.cuda_cpp.quantized_format import MAX_ROWS, most_shared, num_blocks, part_depth
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight, element
from octavo.kernels.ops import Activation

_WARPS, _TILE, _MOST_ENTRIES = 8, 16, 16
_ROW_GAP = 64  # bytes after a row's high bytes, and after its low ones
_SUM_BYTES = 4096  # of sums that are added up at once, if those of one unit are not more
#: inputs of a piece, how much of the shared memory a thread block takes, and the fewest entries for which it does
_CHOICES = ((256, 0.52, 3), (256, 1.0, 3), (128, 1.0, 2))
#: The same for one row, if all warps have as many pieces
_LONG_PIECES = (512, 0.52, 2)
#: Of more than half of the memory a multiprocessor has one thread block. With two, another would have none, and wait.
_ALONE = 0.51


def _row_tiles(num_rows: int) -> int:
    """Tiles of 4 rows, a power of two: a row is two columns of a product, its high bytes and its low ones."""
    return 1 << (-(-num_rows // 4) - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the kernel cuts its work. piece: inputs that a warp multiplies at a time; span: those with one scale;
    entries: pieces in the ring of each warp; units_together: whose sums are added up at once."""

    piece: int
    span: int
    entries: int
    units_together: int
    shared_bytes: int

    @classmethod
    def of(
        cls, group: int, depth: int, num_rows: int, gpu: GPU, *, has_zeros: bool, is_gated: bool, num_parts: int = 1
    ) -> Tiling | None:
        """group: 0 if scales are of outputs. num_parts: in which the inputs are cut. None: the rows do not fit into
        shared memory."""
        if num_rows > MAX_ROWS:
            return None
        span, pitch = 64 if group == 64 else 128, part_depth(depth, num_parts) + _ROW_GAP
        padded, unit = _row_tiles(num_rows) * 4, _WARPS * num_rows * (2 if is_gated else 1) * _TILE * 4
        together = max(1, _SUM_BYTES // unit)
        rest = 2 * together * unit + num_rows * pitch * 2 + -(-pitch // span) * padded * 12 + 16
        is_long = num_rows == 1 and depth % (_LONG_PIECES[0] * _WARPS) == 0
        for piece, share, fewest in (_LONG_PIECES, *_CHOICES) if is_long else _CHOICES:
            by_groups = piece // span * _TILE * (6 if has_zeros else 4) if group else 0
            entry = _WARPS * (piece * _TILE // 2 + by_groups)
            entries = min((int(most_shared(gpu) * share) - rest) // entry, _MOST_ENTRIES)
            if entries >= fewest and depth % piece == 0:
                return cls(piece, span, entries, together, max(rest + entries * entry, int(most_shared(gpu) * _ALONE)))
        return None


@dataclass(frozen=True, slots=True)
class Variant:
    """What the kernel is compiled for. row_tiles: of 4 rows; piece, span, entries: see `Tiling`."""

    dtype: torch.dtype
    has_groups: bool
    has_zeros: bool
    is_gated: bool
    row_tiles: int
    piece: int
    span: int
    entries: int

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "ELEMENT": element(self.dtype),
            "HAS_GROUPS": int(self.has_groups),
            "HAS_ZEROS": int(self.has_zeros),
            "IS_GATED": int(self.is_gated),
            "ROW_TILES": self.row_tiles,
            "WARPS": _WARPS,
            "PIECE": self.piece,
            "SPAN": self.span,
            "ENTRIES": self.entries,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("int4_linear", macros, gpu.capability)


@cache
def _kernel(variant: Variant, gpu: GPU) -> Kernel:
    kernel = Kernel(variant.compile(gpu), "octavo_int4_linear")
    kernel.allow_shared(most_shared(gpu))
    kernel.prefer_shared()
    return kernel


def int4_linear(
    x: torch.Tensor,
    weight: QuantizedWeight,
    out: torch.Tensor,
    *,
    gpu: GPU,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    residual: torch.Tensor | None = None,
    gate: Activation | None = None,
) -> None:
    """As `quantized_linear`."""
    num_rows, depth = x.shape
    num_parts = weight.num_parts(x, out, bias, norm_weight, residual, gate)
    is_gated, has_zeros = gate is not None, weight.zeros is not None
    tiling = Tiling.of(
        weight.group, depth, num_rows, gpu, has_zeros=has_zeros, is_gated=is_gated, num_parts=num_parts
    )  # fmt: skip
    assert tiling is not None, f"{num_rows} rows of {depth} inputs do not fit into shared memory"
    cut = tiling.piece, tiling.span, tiling.entries
    variant = Variant(x.dtype, weight.group > 0, has_zeros, is_gated, _row_tiles(num_rows), *cut)
    launch = Launch.of(
        x, weight, out, num_parts, bias=bias, norm_weight=norm_weight, eps=eps, residual=residual, gate=gate,
        units_together=tiling.units_together,
    )  # fmt: skip
    blocks = num_blocks(launch.columns, num_parts, gpu)
    _kernel(variant, gpu).launch(
        blocks, _WARPS * 32, (launch,), shared_bytes=tiling.shared_bytes,
        stream=torch.cuda.current_stream().cuda_stream, chained=gpu.chains,
    )  # fmt: skip
