"""GGUF's blocks taken apart, without loss: a byte for each code, and a scale, perhaps a minimum, for each group.

    Q4_0, Q5_0, Q8_0     code * d                     groups of 32; Q4_0's codes are 8 too large, as U4's are
    Q4_1, Q5_1           code * d + m                 the minimum is -m
    Q4_K, Q5_K           code * (d * s) - (d_min * m)
    Q6_K                 code * (d * s)               groups of 16
    IQ4_NL, MXFP4        number of the code * d       groups of 32

The numbers are those of `reference/dequantize.py`, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.kernels.cuda.plain_codes import PlainCodes
from octavo.kernels.reference import dequantize
from octavo.kernels.reference.dequantize import RECORDS, Blocks
from octavo.kernels.tensor import BLOCK_FORMATS, HostTensor

_PIECE = 1 << 20  # numbers at a time: their codes stay in a core's cache


def of_blocks(tensor: HostTensor, device: torch.device) -> PlainCodes:
    length, _ = BLOCK_FORMATS[tensor.dtype]
    blocks, step = tensor.data.view(RECORDS[tensor.dtype]), _PIECE // length
    apart = [_apart(tensor.dtype, blocks[start : start + step]) for start in range(0, len(blocks), step)]
    codes, scales, minimums = (_joined(each, tensor.rows, device) for each in zip(*apart, strict=True))
    assert codes is not None, "blocks have codes"
    assert scales is not None, "and scales"
    return PlainCodes(codes, scales, minimums)


def _joined(parts: tuple[NDArray[Any] | None, ...], rows: int, device: torch.device) -> torch.Tensor | None:
    arrays = [part for part in parts if part is not None]
    return torch.from_numpy(np.concatenate(arrays).reshape(rows, -1)).to(device) if arrays else None


def _apart(dtype: str, blocks: Blocks) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32] | None]:
    """[blocks, codes], [blocks, groups], [blocks, groups]."""
    if dtype == "MXFP4":
        return dequantize.halves(blocks), np.ldexp(np.float32(1), blocks["e"].astype(np.int32) - 127), None
    d = blocks["d"].astype(np.float32)
    if dtype in ("Q4_K", "Q5_K"):
        scales, mins = dequantize.six_bit_scales(blocks["scales"])
        runs = dequantize.nibble_runs(blocks) if dtype == "Q4_K" else dequantize.five_bit_runs(blocks)
        return runs.reshape(len(blocks), -1), d * scales, blocks["m"].astype(np.float32) * mins
    minimums = -blocks["m"].astype(np.float32) if dtype in ("Q4_1", "Q5_1") else None
    if dtype in ("Q4_0", "Q4_1", "IQ4_NL"):
        return dequantize.halves(blocks), d, minimums
    if dtype in ("Q5_0", "Q5_1"):
        codes = dequantize.five_bits(blocks).view(np.int8) - np.int8(16 if dtype == "Q5_0" else 0)
    elif dtype == "Q8_0":
        codes = blocks["q"]
    else:
        codes, d = dequantize.six_bits(blocks), d * blocks["scales"]
    return codes.reshape(len(blocks), -1).view(np.uint8), d, minimums
