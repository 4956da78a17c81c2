"""WeightStack: matrices of one shape on the device, dense or as codes with scales, as Triton's kernels read them.

    code              data [rows, bytes], rows = experts x outputs
    F8_E4M3, I8       a byte for each input
    nibbles           units of 32 inputs in 16 bytes: input i in byte i's low half, input 16 + i in its high half

A half of a unit is a run of inputs, so a kernel that has unpacked halves finds the numbers to multiply them by in runs,
too, and never interleaves. Scales are float32; for E2M1 exponents of two in a byte, for some of GGUF's types float16.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from octavo.kernels.cuda.plain_codes import PlainCodes
from octavo.kernels.scaled import Code, ScaledFormat, numbers_of
from octavo.kernels.triton.coded.coded_format import UNIT, has_minimums, row_block, scale_bytes

_SCALES = {1: torch.uint8, 2: torch.float16, 4: torch.float32}
_MOST_SHORT = 2**17  # csrc/cuda/code_fragments.cuh: more would not fit with the power of two that is in a factor
LOOKED_UP: tuple[Code, ...] = ("NF4", "IQ4_NL")


@dataclass(frozen=True, slots=True, eq=False)
class WeightStack:
    """shape: [experts, outputs, inputs]. code: None if data is dense, in that shape. scales [rows / row_block, inputs /
    group]: rounded up; zeros: int8, like them, or what is subtracted after scaling, in their type. order: int32, the
    input that each column meets, for each part of each expert; None: in their order. scale_types: the types of 16 bits
    that hold all scales without rounding them."""

    shape: tuple[int, int, int]
    data: torch.Tensor
    code: Code | None = None
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    group: int = 0
    row_block: int = 1
    order: torch.Tensor | None = None
    scale_types: frozenset[torch.dtype] = frozenset()

    @classmethod
    def dense(cls, matrices: torch.Tensor) -> WeightStack:
        experts, outputs, inputs = matrices.shape
        return cls((experts, outputs, inputs), matrices)

    @classmethod
    def coded(
        cls, parts: Iterable[PlainCodes], shapes: Sequence[tuple[int, ...]], form: ScaledFormat, device: torch.device
    ) -> WeightStack:
        """One matrix of parts, one below the other, with these shapes; each part is read when its turn comes, and may
        sort its inputs in its own order."""
        rows, depth = sum(shape[-2] for shape in shapes), shapes[0][-1]
        group, per = form.block[1] or depth, row_block(form, shapes)
        blocks = rows // per, -(-depth // group)
        data = _with_space_behind(rows, depth // (2 if form.is_nibbles else 1), device)
        number = _SCALES[scale_bytes(form)]
        scales = torch.empty(blocks, dtype=number, device=device)
        zeros = None
        if form.has_zeros or has_minimums(form):
            zeros = torch.empty(blocks, dtype=number if has_minimums(form) else torch.int8, device=device)
        start, orders = 0, []
        for part in parts:
            end = start + len(part.codes)
            data[start:end] = packed(part.codes) if form.is_nibbles else part.codes
            own, spread = slice(start // per, end // per), form.block[0] if per == 1 else 1
            numbers = _by_rows(part.scales, end - start, spread)
            scales[own] = _exponents(numbers) if form.code == "E2M1" else numbers
            if zeros is not None and part.zeros is not None:
                zeros[own] = _by_rows(part.zeros, end - start, spread).to(zeros.dtype)
            start = end
            orders += [] if part.order is None else [part.order]
        order = torch.cat(orders) if orders else None
        return cls((1, rows, depth), data, form.code, scales, zeros, group, per, order, _types_of(scales))

    def split(self, num_experts: int) -> WeightStack:
        """The same rows as the matrices of so many experts."""
        _, rows, depth = self.shape
        return replace(self, shape=(num_experts, rows // num_experts, depth))

    def has_short_scales(self, dtype: torch.dtype) -> bool:
        """Whether numbers of this type of 16 bits hold the scales, and zero points, if any, are 8."""
        return dtype in self.scale_types and self.zeros is None

    @property
    def num_bytes(self) -> int:
        return sum(each.nbytes for each in (self.data, self.scales, self.zeros, self.order) if each is not None)

    @property
    def num_orders(self) -> int:
        """Of each expert: 0, 1 or, of gate and up apart, 2."""
        return 0 if self.order is None else self.order.numel() // (self.shape[0] * self.shape[2])

    @property
    def scales_outputs(self) -> bool:
        """Whether a scale is of whole outputs, so that it may follow the sum. Others are read by units alone."""
        is_number = self.scales is not None and self.scales.dtype == torch.float32 and self.zeros is None
        return is_number and self.group == self.shape[2] and self.row_block == 1

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes, scales and zeros, or what stands for them: for zeros the numbers of codes that are looked up."""
        scales = self.data if self.scales is None else self.scales
        if self.code in LOOKED_UP:
            return self.data, scales, _table(self.code, self.data.device)
        return self.data, scales, scales if self.zeros is None else self.zeros

    @property
    def constants(self) -> dict[str, str | int | bool]:
        """What a kernel is compiled for."""
        return {
            "CODE": "F8_BITS" if self.code == "F8_E4M3" and not _converts_fp8(self.data.device) else self.code or "",
            "GROUP": 0 if self.code is None or self.scales_outputs else self.group,
            "ROW_BLOCK": self.row_block,
            "ZEROS": "" if self.zeros is None else "codes" if self.zeros.dtype == torch.int8 else "minimums",
        }


def _types_of(scales: torch.Tensor) -> frozenset[torch.dtype]:
    if scales.dtype != torch.float32 or bool((scales.abs() >= _MOST_SHORT).any()):
        return frozenset()
    return frozenset(one for one in (torch.bfloat16, torch.float16) if bool((scales.to(one) == scales).all()))


@cache
def _table(code: Code, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(numbers_of(code)).to(device)


@cache
def _converts_fp8(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def _with_space_behind(rows: int, row_bytes: int, device: torch.device) -> torch.Tensor:
    """csrc/cuda/experts.cu reads rows in whole spans of 128 bytes, so of the last row also what is behind it."""
    beyond = -row_bytes % 128
    return torch.empty(rows * row_bytes + beyond, dtype=torch.uint8, device=device)[: rows * row_bytes].view(rows, -1)


def packed(codes: torch.Tensor) -> torch.Tensor:
    """Nibbles [rows, in], one a byte, in units."""
    units = codes.view(len(codes), -1, 2, UNIT // 2)
    return (units[:, :, 0] | units[:, :, 1] << 4).reshape(len(codes), -1)


def _by_rows(blocks: torch.Tensor, rows: int, spread: int) -> torch.Tensor:
    """Scales of a part's blocks [blocks, groups], or of its outputs, with an entry for each of `spread` rows of one."""
    blocks = blocks.reshape(len(blocks), -1)
    return blocks.repeat_interleave(spread, 0)[:rows] if spread > 1 else blocks


def _exponents(scales: torch.Tensor) -> torch.Tensor:
    """Powers of two as bytes: the exponent, plus 127."""
    return (scales.contiguous().view(torch.int32) >> 23).to(torch.uint8)
