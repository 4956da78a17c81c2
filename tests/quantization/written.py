"""Matrices in the formats that quantisers publish, written by hand from their descriptions.

Each writer gets a matrix and gives its tensors, by what follows the module's name, and the numbers that they stand for:
an independent reading of the format, in plain loops and torch, that the schemes are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
Writer = Callable[[torch.Tensor, np.random.Generator], tuple[Tensors, torch.Tensor]]

AWQ_NIBBLES = [0, 2, 4, 6, 1, 3, 5, 7]


def words(codes: torch.Tensor, bits: int, axis: int, order: list[int] | None = None) -> torch.Tensor:
    """Integers packed into 32 bits along an axis: nibble i holds entry order[i]."""
    moved = codes.movedim(axis, -1).to(torch.int64)
    per = 32 // bits
    groups = moved.unflatten(-1, (-1, per))[..., order or list(range(per))]
    packed = sum(groups[..., i] << (bits * i) for i in range(per))
    return packed.to(torch.uint32).view(torch.int32).movedim(-1, axis).contiguous()


def fp8(scale_shape: str, *, static: bool = False, block: int = 32, name: str = "weight_scale") -> Writer:
    def write(w: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        sizes = {"tensor": w.shape, "channel": (1, w.shape[1]), "block": (block, block)}[scale_shape]
        count = [-(-w.shape[0] // sizes[0]), -(-w.shape[1] // sizes[1])]
        scale = torch.tensor(rng.uniform(0.5, 2, count) / 256).bfloat16()
        spread = scale.float().repeat_interleave(sizes[0], 0).repeat_interleave(sizes[1], 1)[: w.shape[0], : w.shape[1]]
        codes = (w / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored = scale.float().reshape(()) if scale_shape == "tensor" else scale
        tensors = {"weight": codes, name: stored} | ({"input_scale": torch.tensor(0.25)} if static else {})
        return tensors, codes.float() * spread

    return write


def int8(*, asymmetric: bool = False, bits: int = 8, group: int = -1) -> Writer:
    """A byte for each integer, also of fewer bits."""

    def write(w: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        size, least = w.shape[1] if group < 0 else group, -(1 << (bits - 1))
        count = [len(w), w.shape[1] // size]
        scale = torch.tensor(rng.uniform(0.5, 2, count) / -least * 2).bfloat16()
        zeros = torch.tensor(rng.integers(-20, 20, count)) if asymmetric else torch.zeros(count)
        spread, zero_of = (each.repeat_interleave(size, 1) for each in (scale.float(), zeros))
        codes = ((w / spread).round() + zero_of).clamp(least, -least - 1).to(torch.int8)
        tensors = {"weight": codes, "weight_scale": scale}
        if asymmetric:
            tensors["weight_zero_point"] = zeros.to(torch.int8)
        return tensors, (codes.float() - zero_of) * spread

    return write


def grouped(w: torch.Tensor, rng: np.random.Generator, bits: int, group: int, columns: torch.Tensor, zeros: Any) -> Any:
    """Codes, zeros and scales [out, groups] of unsigned integers, and the numbers they stand for."""
    count = w.shape[1] // group
    scale = torch.tensor(rng.uniform(0.5, 2, (len(w), count)) / (8 if bits == 4 else 100)).half()
    zero = torch.full((len(w), count), 1 << (bits - 1)) if zeros is None else torch.tensor(zeros((len(w), count)))
    spread, zero_of = scale.float()[:, columns], zero[:, columns]
    codes = ((w / spread).round() + zero_of).clamp(0, (1 << bits) - 1).to(torch.int64)
    return codes, zero, scale, (codes - zero_of).float() * spread


def packed(bits: int, group: int, *, asymmetric: bool = False, sort: bool = False) -> Writer:
    """compressed-tensors' pack-quantized."""

    def write(w: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        size = w.shape[1] if group < 0 else group
        columns = torch.arange(w.shape[1]) // size
        if sort:
            columns = columns[torch.tensor(rng.permutation(w.shape[1]))]
        zeros = (lambda shape: rng.integers(0, 1 << bits, shape)) if asymmetric else None
        codes, zero, scale, numbers = grouped(w, rng, bits, size, columns, zeros)
        tensors = {"weight_packed": words(codes, bits, 1), "weight_scale": scale, "weight_shape": torch.tensor(w.shape)}
        if asymmetric:
            tensors["weight_zero_point"] = words(zero, bits, 0)
        if sort:
            tensors["weight_g_idx"] = columns.int()
        return tensors, numbers

    return write


def gptq(bits: int, group: int, *, asymmetric: bool = False, sort: bool = False, adds_one: bool = True) -> Writer:
    def write(w: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        size = w.shape[1] if group < 0 else group
        columns = torch.arange(w.shape[1]) // size
        if sort:
            columns = columns[torch.tensor(rng.permutation(w.shape[1]))]
        zeros = (lambda shape: rng.integers(1, 1 << bits, shape)) if asymmetric else None
        codes, zero, scale, numbers = grouped(w, rng, bits, size, columns, zeros)
        return {
            "qweight": words(codes.T, bits, 0),
            "qzeros": words(zero.T - int(adds_one), bits, 1),
            "scales": scale.T.contiguous(),
            "g_idx": columns.int(),
        }, numbers

    return write


def awq(w: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
    columns = torch.arange(w.shape[1]) // 32
    codes, zero, scale, numbers = grouped(w, rng, 4, 32, columns, lambda shape: rng.integers(0, 16, shape))
    return {
        "qweight": words(codes.T, 4, 1, AWQ_NIBBLES),
        "qzeros": words(zero.T, 4, 1, AWQ_NIBBLES),
        "scales": scale.T.contiguous(),
    }, numbers


def nf4(*, nested: bool) -> Writer:
    def write(w: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        table = torch.tensor(NF4)
        runs = w.numel() // 64
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(w.shape)}
        tensors: Tensors = {"weight.quant_map": table}
        if nested:
            codes, table8 = torch.tensor(rng.integers(64, 256, runs)), torch.linspace(-1, 1, 256)
            nested_max, offset = torch.rand(-(-runs // 256)) + 0.5, 1.25
            absmax = table8[codes] * nested_max.repeat_interleave(256)[:runs] + offset
            tensors |= {"weight.absmax": codes.to(torch.uint8), "weight.nested_absmax": nested_max}
            tensors |= {"weight.nested_quant_map": table8}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        else:
            absmax = tensors["weight.absmax"] = torch.tensor(rng.uniform(0.5, 1.5, runs)).float()
        flat = w.reshape(-1, 64) / absmax[:, None]
        codes = (flat[..., None] - table).abs().argmin(-1)
        pairs = codes.reshape(-1, 2)
        tensors["weight"] = (pairs[:, 0] * 16 + pairs[:, 1]).to(torch.uint8)[:, None]
        text = json.dumps(state).encode()
        tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
        return tensors, (table[codes] * absmax[:, None]).reshape(w.shape)

    return write


def bnb_int8(w: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
    absmax = w.abs().amax(1)
    codes = (w / absmax[:, None] * 127).round().to(torch.int8)
    return {"weight": codes, "SCB": absmax}, codes.float() * (absmax * np.float32(1 / 127))[:, None]


def mxfp4(w: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    exponents = torch.tensor(rng.integers(124, 128, (len(w), w.shape[1] // 32)))
    scale = (2.0 ** (exponents - 127).double()).float().repeat_interleave(32, 1)
    codes = ((w / scale)[..., None] - table).abs().argmin(-1)
    pairs = codes.reshape(len(w), -1, 2)
    packed_codes = (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)
    return {"weight_packed": packed_codes, "weight_scale": exponents.to(torch.uint8)}, table[codes] * scale


NF4 = [
    *[-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334],
    *[-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224],
    *[0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
]


def changed(write: Writer, names: dict[str, str | None], **more: torch.Tensor) -> Writer:
    """As another program writes it: tensors have other names, None: are left out, and there are more."""

    def wrapped(w: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        tensors, numbers = write(w, rng)
        named = {names.get(name, name): tensor for name, tensor in tensors.items()}
        kept = {name: tensor for name, tensor in named.items() if name is not None}
        return kept | {name: tensor.clone() for name, tensor in more.items()}, numbers

    return wrapped
