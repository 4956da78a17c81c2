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
from dataclasses import dataclass

import numpy as np
import torch

from octavo.kernels.cuda_cpp.quantized_format import LAYOUTS, Layout, Scales, scales_of
from octavo.kernels.scaled import ScaledFormat, ScaledTensor

_LARGEST = {"F8_E4M3": 448.0, "I8": 127.0}


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """A matrix [out, in] on the device. group: inputs that share a scale, where scales are of groups. zeros: as scales,
    what `pack_zeros` made of the zero points; None: they are 8."""

    layout: Layout
    kind: Scales
    data: torch.Tensor
    scales: torch.Tensor
    columns: int
    depth: int
    group: int = 0
    zeros: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        return sum(each.nbytes for each in (self.data, self.scales, self.zeros) if each is not None)

    @classmethod
    def of(cls, parts: Sequence[ScaledTensor], dtype: torch.dtype, device: torch.device) -> QuantizedWeight:
        """Matrices one below the other, all in one format. dtype: of the rows that they are multiplied by."""
        return cls._of([_Plain.of(part, device) for part in parts], parts[0].format, dtype)

    @classmethod
    def quantise(cls, parts: Sequence[torch.Tensor], form: ScaledFormat, dtype: torch.dtype) -> QuantizedWeight:
        """The same of dense matrices on the device: the nearest codes under scales by the largest magnitudes."""
        return cls._of([_Plain.quantise(part, form) for part in parts], form, dtype)

    @classmethod
    def _of(cls, parts: Sequence[_Plain], form: ScaledFormat, dtype: torch.dtype) -> QuantizedWeight:
        layout, kind = LAYOUTS[form.code], scales_of(form)
        codes, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
        columns, depth = codes.shape
        zeros = None
        if form.has_zeros:
            points = [part.zeros for part in parts if part.zeros is not None]
            zeros = pack_zeros(torch.cat(points), dtype)
        data = {
            "int4": lambda: pack_int4(codes),
            "int8": lambda: codes ^ 128,
            "fp8": lambda: codes.view(torch.float8_e4m3fn),
        }[layout]()
        if kind == "groups":
            scales = pack_by_groups(scales)
        elif kind == "blocks":  # copied in multiples of 16 bytes
            scales = torch.nn.functional.pad(scales, (0, -scales.shape[1] % 4)).contiguous()
        return cls(layout, kind, data, scales, columns, depth, form.block[1] if kind == "groups" else 0, zeros)


@dataclass(frozen=True, slots=True, eq=False)
class _Plain:
    """codes: uint8 [out, in]. scales: float32, [out] or by groups or blocks. zeros: as scales."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None

    @classmethod
    def of(cls, tensor: ScaledTensor, device: torch.device) -> _Plain:
        codes = torch.from_numpy(np.ascontiguousarray(tensor.codes)).to(device)
        if tensor.format.is_nibbles:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).view(tensor.rows, tensor.cols)
        scales = torch.from_numpy(np.ascontiguousarray(tensor.scales)).to(device)
        if scales_of(tensor.format) == "outputs":
            scales = scales.reshape(-1).expand(tensor.rows)
        zeros = None if tensor.zeros is None else torch.from_numpy(tensor.zeros).to(device)
        return cls(codes, scales, zeros)

    @classmethod
    def quantise(cls, matrix: torch.Tensor, form: ScaledFormat) -> _Plain:
        """As `quantization/at_load.py` does on a host."""
        (rows, cols), per = matrix.shape, form.block_of(tuple(matrix.shape))
        down, across = form.blocks_of(tuple(matrix.shape))
        padded = torch.nn.functional.pad(matrix.float(), (0, across * per[1] - cols, 0, down * per[0] - rows))
        blocks = padded.view(down, per[0], across, per[1])
        largest, smallest = blocks.amax((1, 3)), blocks.amin((1, 3))
        if form.code == "U4":
            scales = torch.where(largest > -smallest, largest, smallest) / -8
        else:
            largest = torch.maximum(largest, -smallest)
            scales = largest / torch.full_like(largest, _LARGEST[form.code])  # a scalar's reciprocal would be rounded
        steps = blocks / torch.where(scales == 0, 1, scales)[:, None, :, None]
        steps = steps.view(padded.shape)[:rows, :cols]
        if form.code == "F8_E4M3":
            codes = steps.contiguous().to(torch.float8_e4m3fn).view(torch.uint8)
        elif form.code == "I8":
            codes = steps.round().clamp(-127, 127).to(torch.int8).view(torch.uint8)
        else:
            codes = (steps.round() + 8).clamp(0, 15).to(torch.uint8)
        zeros = torch.full_like(scales, 8) if form.has_zeros else None
        if scales_of(form) == "outputs":
            scales = scales.reshape(-1).expand(rows)
        return cls(codes, scales, zeros)


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


def pack_zeros(zeros: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Zero points [out, groups] as the kernel subtracts them from int4 in that type."""
    raised = 1024 if dtype == torch.float16 else 128
    return pack_by_groups(-(zeros.to(torch.float32) + raised)).to(dtype)
