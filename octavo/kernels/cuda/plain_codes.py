"""A quantised matrix on the device, a byte for each code: from a checkpoint, or quantised here from dense numbers.

Each backend's kernels then pack the codes in their own way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.errors import UnsupportedModelError
from octavo.kernels.cuda_cpp.quantized_format import scales_of
from octavo.kernels.scaled import IMPLIED_ZERO, Code, ScaledFormat, ScaledTensor, numbers_of

_LARGEST: dict[Code, float] = {"F8_E4M3": 448.0, "I8": 127.0, "E2M1": 6.0, "NF4": 1.0, "IQ4_NL": 127.0}


@dataclass(frozen=True, slots=True, eq=False)
class PlainCodes:
    """codes: uint8 [out, in]. scales: float32, [out] or by groups or blocks. zeros: as scales. order: int32, of inputs
    that are sorted by importance the one that each column meets; the columns of a group are neighbours."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    order: torch.Tensor | None = None

    @classmethod
    def of(cls, tensor: ScaledTensor, device: torch.device) -> PlainCodes:
        codes = torch.from_numpy(np.ascontiguousarray(tensor.codes)).to(device).view(tensor.rows, -1)
        if tensor.format.is_nibbles:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).view(tensor.rows, tensor.cols)
        scales = torch.from_numpy(np.ascontiguousarray(tensor.scales)).to(device)
        scales = scales.view(-1, scales.shape[-1])
        if scales_of(tensor.format) == "outputs":
            scales = scales.reshape(-1).expand(tensor.rows)
        zeros = None if tensor.zeros is None else torch.from_numpy(tensor.zeros).to(device)
        if tensor.groups is None:
            return cls(codes, scales, zeros)
        order = torch.from_numpy(_sorted(tensor.groups, tensor.format.block[1])).to(device)
        return cls(codes[:, order], scales, zeros, order.int())

    @classmethod
    def quantise(cls, matrix: torch.Tensor, form: ScaledFormat) -> PlainCodes:
        """As `quantization/at_load.py` does on a host."""
        (rows, cols), per = matrix.shape, form.block_of(tuple(matrix.shape))
        down, across = form.blocks_of(tuple(matrix.shape))
        padded = torch.nn.functional.pad(matrix.float(), (0, across * per[1] - cols, 0, down * per[0] - rows))
        blocks = padded.view(down, per[0], across, per[1])
        smallest = blocks.amin((1, 3))
        scales = _scales(form, blocks.amax((1, 3)), smallest)
        if form.code == "U4":
            scales = scales.bfloat16().float()
        divisors = torch.where(scales == 0, 1, scales)
        steps, zeros = blocks / divisors[:, None, :, None], None
        if form.has_zeros:
            zeros = _zeros(form, smallest / divisors)
            steps += (zeros - IMPLIED_ZERO.get(form.code, 0))[:, None, :, None]
        codes = _nearest(form.code, steps.view(padded.shape)[:rows, :cols].contiguous())
        if scales_of(form) == "outputs":
            scales = scales.reshape(-1).expand(rows)
        order = torch.arange(cols, dtype=torch.int32, device=matrix.device) if form.is_sorted else None
        return cls(codes, scales, zeros, order)


def _sorted(groups: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """Inputs by group. Raises UnsupportedModelError if groups are not of this size."""
    order = np.argsort(groups, kind="stable")
    if not np.array_equal(groups[order], np.arange(len(groups)) // size):
        raise UnsupportedModelError(
            f"its inputs are in groups of unequal sizes, and on a GPU all have {size}: set backend to 'cpu'"
        )
    return order


def _scales(form: ScaledFormat, largest: torch.Tensor, smallest: torch.Tensor) -> torch.Tensor:
    code = form.code
    if code == "U4" and form.has_zeros:
        ends = largest.clamp(min=0) - smallest.clamp(max=0)
        return ends / torch.full_like(ends, 15)  # a scalar's reciprocal would be rounded
    if code == "U4":
        return torch.where(largest > -smallest, largest, smallest) / -8
    largest = torch.maximum(largest, -smallest)
    scales = largest / torch.full_like(largest, _LARGEST[code])
    return torch.exp2(torch.ceil(torch.log2(scales.clamp(min=1e-30)))) if code == "E2M1" else scales


def _zeros(form: ScaledFormat, lowest: torch.Tensor) -> torch.Tensor:
    """lowest: each block's smallest number in steps of its scale."""
    return (-lowest.clamp(max=0)).round().clamp(0, 15) if form.code == "U4" else torch.zeros_like(lowest)


def _nearest(code: Code, numbers: torch.Tensor) -> torch.Tensor:
    if code == "F8_E4M3":
        return numbers.to(torch.float8_e4m3fn).view(torch.uint8)
    if code == "I8":
        return numbers.round().clamp(-127, 127).to(torch.int8).view(torch.uint8)
    if code == "U4":
        return (numbers.round() + 8).clamp(0, 15).to(torch.uint8)
    known = torch.from_numpy(numbers_of(code)).to(numbers.device)
    ordered, order = torch.sort(known, stable=True)
    upper = torch.searchsorted(ordered, numbers).clamp(1, len(ordered) - 1)
    below, above = numbers - ordered[upper - 1], ordered[upper] - numbers
    takes_lower = (below < above) | ((below == above) & (order[upper - 1] % 2 == 0))
    return order[torch.where(takes_lower, upper - 1, upper)].to(torch.uint8)
