"""Matrices of codes and scales on the device, as csrc/cuda/quantized_linear.cu reads them.

`quantized_format.py` says which ones it takes. A dense matrix of the file, which is to be quantised as it is loaded, is
quantised on the device.

    layout   data                                                 scales
    fp8      [out, in] float8_e4m3fn                              [out], or [out / 128, in / 128]
    int8     [out, in] uint8: the number plus 128                 [out], or packed by groups
    int4     [out / 16, in / 64, 32, 16], see pack_int4           [out], or packed by groups
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite, log2

import torch

from octavo.kernels.cuda.plain_codes import PlainCodes
from octavo.kernels.cuda_cpp.quantized_format import LAYOUTS, Layout, Scales, scales_of
from octavo.kernels.scaled import ScaledFormat

MOST_SHORT_SCALE = 2.0**17  # of bfloat16, of csrc/cuda/code_numbers.cuh
MOST_HALF_SCALE = 2.0**6  # of float16, to which larger ones are lowered
_HALF_UNIT = 2.0**-9


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """A matrix [out, in] on the device. group: inputs that share a scale, where scales are of groups. zeros: as scales,
    the zero points, in the type of the rows; None: they are 8. has_short_scales: of groups or blocks, and numbers of
    the rows' type, of bfloat16 below MOST_SHORT_SCALE. raised: a power of two, which float16's scales are divided by.
    """

    layout: Layout
    kind: Scales
    data: torch.Tensor
    scales: torch.Tensor
    columns: int
    depth: int
    group: int = 0
    zeros: torch.Tensor | None = None
    has_short_scales: bool = False
    raised: float = 1.0

    @property
    def num_bytes(self) -> int:
        return sum(each.nbytes for each in (self.data, self.scales, self.zeros) if each is not None)

    def num_parts(self, x: torch.Tensor, out: torch.Tensor, *fused: object) -> int:
        """The parts of the inputs that `out` has sums over. fused: what makes a result of whole sums, each or None."""
        num_parts = len(out) if out.dim() == 3 else 1
        assert x.shape[1] == self.depth, f"{x.shape[1]} columns times a weight of {self.depth}"
        assert num_parts == 1 or all(each is None for each in fused), "parts become whole sums later"
        return num_parts

    @classmethod
    def of(cls, parts: Sequence[PlainCodes], form: ScaledFormat, dtype: torch.dtype) -> QuantizedWeight:
        """Matrices one below the other, all in one format. dtype: of the rows that they are multiplied by."""
        layout, kind = LAYOUTS[form.code], scales_of(form)
        codes, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
        columns, depth = codes.shape
        zeros = None
        if form.has_zeros:
            points = [part.zeros for part in parts if part.zeros is not None]
            zeros = pack_by_groups(torch.cat(points)).to(dtype)
        data = {
            "int4": lambda: pack_int4(codes),
            "int8": lambda: codes ^ 128,
            "fp8": lambda: codes.view(torch.float8_e4m3fn),
        }[layout]()
        is_short, raised = False, 1.0
        if kind == "groups":
            scales = pack_by_groups(scales)
            raised = _raised(scales) if dtype == torch.float16 else 1.0
            is_short = _are_short(scales / raised, dtype)
        elif kind == "blocks":  # copied in multiples of 16 bytes
            is_short = _are_short(scales, torch.bfloat16)
            scales = torch.nn.functional.pad(scales, (0, -scales.shape[1] % 4)).contiguous()
        group = form.block[1] if kind == "groups" else 0
        return cls(layout, kind, data, scales, columns, depth, group, zeros, is_short, raised)


@dataclass(frozen=True, slots=True, eq=False)
class OrderedWeight:
    """A matrix whose inputs are sorted. orders: int32 [parts, 2, in], of each part: the input that each column meets,
    and the same of the places in which `triton/dealt.py` puts them. All parts have one order."""

    matrix: QuantizedWeight
    orders: torch.Tensor

    @property
    def order(self) -> torch.Tensor:
        return self.orders[0, 0]

    @property
    def dealt_order(self) -> torch.Tensor:
        return self.orders[0, 1]

    @property
    def num_bytes(self) -> int:
        return self.matrix.num_bytes + self.orders.nbytes

    @classmethod
    def all_of(
        cls, parts: Sequence[PlainCodes], form: ScaledFormat, dtype: torch.dtype
    ) -> tuple[tuple[OrderedWeight, int], ...]:
        """And how many parts each has. Neighbouring parts with one order become one weight."""
        plain, found = replace(form, is_sorted=False), []
        while parts:
            orders = [_order(part) for part in parts]
            same = next((i for i, order in enumerate(orders) if not torch.equal(order, orders[0])), len(parts))
            both = torch.stack((orders[0], _dealt(orders[0]))).repeat(same, 1, 1)
            found.append((cls(QuantizedWeight.of(parts[:same], plain, dtype), both), same))
            parts = parts[same:]
        return tuple(found)


def _order(part: PlainCodes) -> torch.Tensor:
    assert part.order is not None, "a format that sorts inputs has an order"
    return part.order


def _dealt(order: torch.Tensor) -> torch.Tensor:
    return order.view(-1, 4, 4, 2).transpose(1, 2).reshape(-1)


def _raised(scales: torch.Tensor) -> float:
    """The power of two that takes the largest scale below MOST_HALF_SCALE, or 1."""
    largest = float(scales.abs().max())
    return 2.0 ** max(0, ceil(log2(largest / MOST_HALF_SCALE))) if isfinite(largest) and largest else 1.0


def _are_short(scales: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether csrc/cuda/code_numbers.cuh multiplies by each in one part."""
    if dtype == torch.float16:
        scales = scales / _HALF_UNIT
        return bool((scales.half().float() == scales).all())
    return bool(((scales.bfloat16().float() == scales) & (scales.abs() < MOST_SHORT_SCALE)).all())


def pack_int4(q: torch.Tensor) -> torch.Tensor:
    """q [out, in] of 0..15 -> [out / 16, in / 64, 32, 16] bytes: what each lane of a warp reads at once.

    Lane 4 g + t has outputs g and g + 8 of a tile, and of each 32 inputs those from 8 t on. A word has eight numbers of
    one output: nibble i the number 2 i, nibble i + 4 the number 2 i + 1."""
    columns, depth = q.shape
    parts = q.view(columns // 16, 2, 8, depth // 64, 2, 4, 8)  # tile, half, g, piece, unit, t, number
    parts = parts.permute(0, 3, 2, 5, 4, 1, 6)[..., [0, 2, 4, 6, 1, 3, 5, 7]].contiguous().to(torch.uint8)
    nibbles = parts.view(*parts.shape[:-1], 4, 2)
    return (nibbles[..., 0] | nibbles[..., 1] << 4).view(columns // 16, depth // 64, 32, 16)


def pack_by_groups(x: torch.Tensor) -> torch.Tensor:
    """[out, groups] -> [out / 16, groups, 8, 2]: outputs o and o + 8 of a tile side by side."""
    columns, groups = x.shape
    return x.view(columns // 16, 2, 8, groups).permute(0, 3, 2, 1).contiguous()


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def element(dtype: torch.dtype) -> str:
    """The name of a 16-bit type in csrc/cuda/ptx.cuh."""
    return "Fp16" if dtype == torch.float16 else "Bf16"
