"""Matrices of codes and scales, as csrc/cuda/quantized_linear.cu reads them.

layout   codes        data                                        scales
fp8      F8_E4M3      [out, in] float8_e4m3fn                     of outputs [out], or of blocks of 128 x 128
int8     I8           [out, in] uint8: the number plus 128        of outputs, or of groups of inputs
int4     U4           [out / 16, in / 64, 32, 16], see pack_int4  of groups of inputs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from octavo.kernels.scaled import ScaledFormat, ScaledTensor

Layout = Literal["fp8", "int8", "int4"]
Scales = Literal["outputs", "groups", "blocks"]

_LAYOUTS: dict[str, Layout] = {"F8_E4M3": "fp8", "I8": "int8", "U4": "int4"}
_GROUPS = (64, 128, 256, 512)
_TILE, _PIECE = 16, 128  # outputs and inputs that the kernel takes at a time


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
        """Matrices one below the other, all in one format that `why_not` finds nothing against. dtype: of the rows that
        they are multiplied by."""
        form, depth = parts[0].format, parts[0].cols
        layout, kind = _LAYOUTS[form.code], scales_of(form)
        codes = torch.from_numpy(np.concatenate([part.codes for part in parts])).to(device)
        if layout == "int4":
            codes = pack_int4(torch.stack((codes & 15, codes >> 4), dim=-1).view(len(codes), depth))
        elif layout == "int8":
            codes = codes ^ 128
        else:
            codes = codes.view(torch.float8_e4m3fn)
        scales = torch.from_numpy(np.concatenate([_rows_of_scales(part, kind) for part in parts])).to(device)
        zeros = None
        if form.has_zeros:
            points = [part.zeros for part in parts if part.zeros is not None]
            zeros = pack_zeros(torch.from_numpy(np.concatenate(points)).to(device), dtype)
        columns = sum(part.rows for part in parts)
        if kind == "groups":
            scales = pack_by_groups(scales)
        elif kind == "blocks":  # copied in multiples of 16 bytes
            scales = torch.nn.functional.pad(scales, (0, -scales.shape[1] % 4)).contiguous()
        return cls(layout, kind, codes, scales, columns, depth, form.block[1] if kind == "groups" else 0, zeros)


def why_not(form: ScaledFormat, columns: int, depth: int) -> str | None:
    """Why the kernel does not take a matrix, or None."""
    if form.code not in _LAYOUTS:
        return f"codes of {form.code}; it takes {', '.join(_LAYOUTS)}"
    if form.is_sorted:
        return "inputs that are sorted by importance; it takes them in order"
    if columns % _TILE or depth % _PIECE:
        return f"{columns} x {depth}; it takes multiples of {_TILE} x {_PIECE}"
    rows, group = form.block
    if form.block in ((0, 0), (1, 0)):
        return "a zero point for each output" if form.has_zeros else None
    if form.code == "F8_E4M3":
        fits = form.block == (128, 128) and columns % 128 == 0
        return None if fits else f"fp8 {form.label}; it takes a scale per tensor, per output or per 128x128"
    if rows != 1 or group not in _GROUPS or depth % group:
        return f"{form.label}; it takes groups of {', '.join(map(str, _GROUPS))}"
    return "a zero point for groups of int8" if form.code == "I8" and form.has_zeros else None


def scales_of(form: ScaledFormat) -> Scales:
    if form.block in ((0, 0), (1, 0)):
        return "outputs"
    return "blocks" if form.block[0] > 1 else "groups"


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


def _rows_of_scales(part: ScaledTensor, kind: Scales) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if kind != "outputs":
        return part.scales
    return np.broadcast_to(part.scales.reshape(-1), (part.rows,)) if part.scales.size == 1 else part.scales.reshape(-1)
