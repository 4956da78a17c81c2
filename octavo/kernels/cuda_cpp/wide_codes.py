"""Launches csrc/cuda/wide_codes.cu: many rows of 16 bits times a weight of int4, int8 or fp8, on Hopper.

The rows' inputs are dealt first (triton/dealt.py): a thread of the kernel has other inputs of a product than Hopper's
instructions have.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import Structure, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.quantized_format import LARGEST_WIDE_TILE, Layout, Scales
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight, address, element
from octavo.kernels.triton.linear.quantized import deal_inputs

_THREADS, _BOX = 384, 64
_FORMATS: dict[Layout, str] = {"int4": "kInt4", "int8": "kInt8", "fp8": "kFp8"}
_SCALES: dict[Scales, str] = {"outputs": "kOfOutputs", "groups": "kOfGroups", "blocks": "kOfBlocks"}
_BLOCK_BITS, _WORDS = 7, 4  # of blocks: 128 inputs; scales that come at once
_BYTES = 8  # of an input's codes of 16 outputs, in 4 bits
_PANEL = 64  # inputs
_QUARTERS = 4  # of a tile's sums, that blocks share
_MOST_PRODUCT = 1 << 31  # of all stages and blocks


class _Launch(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("bias", "scales", "out", "sums", "told", "count")),
        ("out_stride", c_int64),
        *((name, c_int) for name in ("num_rows", "columns", "depth", "group_bits", "num_tiles", "whole_turns")),
        *((name, c_float) for name in ("lowered", "raised")),
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """Of a weight, and of the rows that it is multiplied by."""

    layout: Layout
    dtype: torch.dtype
    scales: Scales
    has_zeros: bool
    has_short_scales: bool

    @classmethod
    def of(cls, weight: QuantizedWeight, dtype: torch.dtype) -> Kind:
        return cls(weight.layout, dtype, weight.kind, weight.zeros is not None, weight.has_short_scales)


@dataclass(frozen=True, slots=True)
class Variant:
    """What the kernel is compiled for. rows, outputs: of a tile."""

    kind: Kind
    rows: int
    outputs: int

    def compile(self, gpu: GPU) -> bytes:
        kind = self.kind
        macros: dict[str, str | int] = {
            "ELEMENT": element(kind.dtype),
            "FORMAT": _FORMATS[kind.layout],
            "SCALES": _SCALES[kind.scales],
            "HAS_ZEROS": int(kind.has_zeros),
            "HAS_SHORT_SCALES": int(kind.has_short_scales),
            "ROW_TILE": self.rows,
            "OUTPUT_TILE": self.outputs,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("wide_codes", macros, gpu.capability)


@cache
def _kernel(variant: Variant, gpu: GPU) -> tuple[Kernel, int]:
    """And the bytes of shared memory that it needs."""
    kernel = Kernel(variant.compile(gpu), "octavo_wide_codes")
    return kernel, kernel.take_shared()


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a tile. alone, beside: microseconds of 64 inputs on an H200 whose other multiprocessors are idle, and how many
    more if none is for long."""

    rows: int
    outputs: int
    alone: float
    beside: float

    @property
    def inputs(self) -> int:
        """Of a stage."""
        return 128 if self.rows <= 128 else 64


#: fitted to what benchmarks/results/2026-11-30-quantised-gpu.md describes
SHAPES = (
    Shape(32, 128, 0.202, 0.020),
    Shape(32, 256, 0.358, 0.003),
    Shape(64, 128, 0.217, 0.051),
    Shape(64, 256, 0.394, 0.062),
    Shape(128, 128, 0.301, 0.084),
    Shape(128, 256, 0.586, 0.121),
    Shape(160, 128, 0.384, 0.081),
    Shape(192, 128, 0.444, 0.095),
    Shape(224, 128, 0.506, 0.120),
    Shape(256, 128, 0.575, 0.154),
)
_LONG = 160 * 64  # inputs of a block, after which the clocks have fallen
#: microseconds to exchange sums: if a tile's blocks have equal parts, and if not; and for the largest tile
_EQUAL, _EQUAL_TILE, _UNEQUAL, _UNEQUAL_TILE = 1.5, 5.5, 2.8, 6.1


@dataclass(frozen=True, slots=True)
class Split:
    """Tiles of a shape, for so many blocks, which have as many stages each."""

    shape: Shape
    tiles: int
    blocks: int

    @classmethod
    @cache
    def of(cls, num_rows: int, columns: int, depth: int, num_blocks: int) -> Split:
        """The one that costs least."""
        every = [split for shape in SHAPES for split in cls.all_of(shape, num_rows, columns, depth, num_blocks)]
        return min(every, key=lambda split: split.cost(depth, num_blocks))

    @classmethod
    def all_of(cls, shape: Shape, num_rows: int, columns: int, depth: int, num_blocks: int) -> Iterator[Split]:
        """A tile for each block, or for some together; or all blocks share all tiles."""
        tiles = -(-num_rows // shape.rows) * -(-columns // shape.outputs)
        stages = depth // shape.inputs
        counts = {min(num_blocks, tiles * stages)}
        if tiles <= num_blocks:
            counts |= {tiles, tiles * min(num_blocks // tiles, stages, _QUARTERS)}
        yield from (cls(shape, tiles, count) for count in sorted(counts))

    @property
    def whole_turns(self) -> int:
        """Of tiles that each are one block's. The rest is more than a turn, or few tiles would be of many blocks."""
        turns = self.tiles // self.blocks
        return turns if self.tiles % self.blocks == 0 else max(0, turns - 1)

    def cost(self, depth: int, num_blocks: int) -> float:
        """Microseconds, about."""
        inputs = depth * self.tiles / self.blocks
        busy = self.blocks / num_blocks * min(1.0, inputs / _LONG)
        alone = inputs / 64 * (self.shape.alone + self.shape.beside * busy)
        tile = self.shape.rows * self.shape.outputs / LARGEST_WIDE_TILE
        if self.tiles % self.blocks == 0:
            return alone
        if self.blocks % self.tiles == 0:
            left = 1 - self.tiles / self.blocks  # of a tile, what a block leaves to others
            return alone + _EQUAL + _EQUAL_TILE * tile * left * self.blocks / num_blocks
        return alone + _UNEQUAL + _UNEQUAL_TILE * tile


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """Room for what the blocks of one launch tell each other. sums: float32, LARGEST_WIDE_TILE for each block. told:
    int32, one for each block and one more, zeros at first."""

    sums: torch.Tensor
    told: torch.Tensor


def prepare(weight: QuantizedWeight, dtype: torch.dtype, gpu: GPU) -> None:
    """Compile and load what rows of any number need, so that no prompt waits for it."""
    _prepare(Kind.of(weight, dtype), gpu)


@cache
def _prepare(kind: Kind, gpu: GPU) -> None:
    """All at once; threads suffice, since each nvcc is a process."""
    variants = [Variant(kind, shape.rows, shape.outputs) for shape in SHAPES]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda variant: variant.compile(gpu), variants))
    for variant in variants:
        _kernel(variant, gpu)


def wide_codes(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, out: torch.Tensor, room: torch.Tensor | None,
    exchange: Exchange, *, gpu: GPU,
) -> None:  # fmt: skip
    """out [T, out] = x [T, in] W^T + bias, all in the type that the weight was made for. room: of that type, flat, for
    the rows with their inputs dealt; None: they are."""
    num_rows, depth = x.shape
    dealt = x
    if room is not None:
        dealt = room[: num_rows * depth].view(num_rows, depth)
        deal_inputs(x, dealt, chained=gpu.chains)
    assert dealt.is_contiguous(), "dealt rows lie one after another"
    split = Split.of(num_rows, weight.columns, depth, gpu.num_multiprocessors)
    shape = split.shape
    assert split.tiles * depth * split.blocks < _MOST_PRODUCT, f"{num_rows} rows are too many"
    group_bits = weight.group.bit_length() - 1 if weight.group else _BLOCK_BITS
    launch = _Launch(
        address(bias), weight.scales.data_ptr(), out.data_ptr(), exchange.sums.data_ptr(), exchange.told[1:].data_ptr(),
        exchange.told.data_ptr(), out.stride(0), num_rows, weight.columns, depth, group_bits,
        split.tiles, split.whole_turns, 1 / weight.raised, weight.raised,
    )  # fmt: skip
    there = min(-(-num_rows // shape.rows) * shape.rows, _rows_in_memory(dealt))
    is_half = x.dtype == torch.float16
    rows = TensorMap.of_rows(dealt.data_ptr(), there, depth, is_half=is_half, box_rows=shape.rows, box_dim=_BOX)
    kernel, shared_bytes = _kernel(Variant(Kind.of(weight, x.dtype), shape.rows, shape.outputs), gpu)
    kernel.launch(
        split.blocks, _THREADS, (launch, rows, *_maps(weight, shape)), shared_bytes=shared_bytes,
        stream=torch.cuda.current_stream().cuda_stream, chained=gpu.chains,
    )  # fmt: skip


def _maps(weight: QuantizedWeight, shape: Shape) -> tuple[TensorMap, TensorMap, TensorMap]:
    """Of codes, scales of groups and zero points; for what there is not, codes again. A box is what a stage of a tile
    has."""
    rows, box_rows = weight.columns // 16, shape.outputs // 16
    at = weight.data.data_ptr()
    if weight.layout != "int4":
        codes = TensorMap.of_panels(
            at, weight.columns, weight.depth, box_rows=shape.outputs, box_panels=shape.inputs // _PANEL
        )
    else:
        lines = shape.inputs * _BYTES // 128
        codes = TensorMap.of_lines(at, rows, weight.depth * _BYTES, box_rows=box_rows, box_lines=lines)
    if weight.kind == "outputs":
        return codes, codes, codes
    if weight.kind == "blocks":
        blocks, padded = weight.scales.shape
        at, box_rows = weight.scales.data_ptr(), shape.outputs // 128
        return codes, TensorMap.of_words(at, blocks, padded, box_rows=box_rows, box_dim=_WORDS), codes
    groups, at_once = weight.depth // weight.group, max(1, shape.inputs // weight.group)

    def of(tensor: torch.Tensor, num_words: int, box: int) -> TensorMap:
        return TensorMap.of_words(tensor.data_ptr(), rows, num_words, box_rows=box_rows, box_dim=box)

    scales = of(weight.scales, groups * 16, at_once * 16)
    return codes, scales, codes if weight.zeros is None else of(weight.zeros, groups * 8, at_once * 8)


def _rows_in_memory(x: torch.Tensor) -> int:
    """From x on, also those behind it. Tiles read them, and their results are not stored: the copy engine takes longer
    for rows that it must make up."""
    num_bytes = x.untyped_storage().nbytes() - x.storage_offset() * x.element_size()
    return num_bytes // (x.shape[1] * x.element_size())
