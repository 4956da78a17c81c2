"""Codes as numbers inside a kernel: what `kernels/reference/scaled.py` specifies, for tiles of a WeightStack.

A tile has some rows and COLUMNS inputs. It comes as two halves, first and second, of its units of 32 inputs if two
codes share a byte; of whole bytes only the first half counts, which then has all inputs:

    bytes     first: inputs 0 1 2 ...
    nibbles   first: inputs 0..15, 32..47, 64..79 ...     second: inputs 16..31, 48..63 ...

zeros_ptr has the zeros of units (ZEROS "codes"), what is subtracted after scaling ("minimums"), or the sixteen
numbers of codes that are looked up.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def are_nibbles(code: str) -> bool:
    return code in ("U4", "E2M1", "NF4", "IQ4_NL")


@triton.constexpr_function
def unit_of(group: int) -> int:
    """Inputs that are scaled together. Groups of 16 are of whole bytes."""
    return 16 if group == 16 else 32


@triton.jit
def first_inputs(COLUMNS: tl.constexpr, CODE: tl.constexpr):
    """The inputs of a tile's first half; those of the second are 16 further."""
    if are_nibbles(CODE):
        byte = tl.arange(0, COLUMNS // 2)
        return byte // 16 * 32 + byte % 16
    else:
        return tl.arange(0, COLUMNS)


@triton.jit
def _load_codes(data_ptr, table_ptr, row, start, is_wanted, K: tl.constexpr, COLUMNS: tl.constexpr, CODE: tl.constexpr):
    """Both halves of a tile from column `start`, [rows, inputs of a half] in float32, without scales; zeros unless they
    are wanted. row: int64."""
    if are_nibbles(CODE):
        byte = start // 2 + tl.arange(0, COLUMNS // 2)
        at = data_ptr + row[:, None] * (K // 2) + byte[None, :]
        both = tl.load(at, mask=(is_wanted & (byte < K // 2))[None, :], other=0).to(tl.int32)
        return _nibbles(both & 15, table_ptr, CODE), _nibbles(both >> 4, table_ptr, CODE)
    else:
        k = start + tl.arange(0, COLUMNS)
        at = data_ptr + row[:, None] * K + k[None, :]
        codes = _bytes(tl.load(at, mask=(is_wanted & (k < K))[None, :], other=0), CODE)
        return codes, codes


@triton.jit
def _load_scales(
    scales_ptr, zeros_ptr, row, start, is_wanted, K: tl.constexpr, COLUMNS: tl.constexpr, CODE: tl.constexpr,
    GROUP: tl.constexpr, ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """Scales and zeros of a tile, [rows, units] in float32."""
    UNIT: tl.constexpr = unit_of(GROUP)
    k = start + tl.arange(0, COLUMNS // UNIT) * UNIT
    at = (row // ROW_BLOCK)[:, None] * ((K + GROUP - 1) // GROUP) + (k // GROUP)[None, :]
    inside = (is_wanted & (k < K))[None, :]
    scales = tl.load(scales_ptr + at, mask=inside, other=0)
    if CODE != "E2M1":
        scales = scales.to(tl.float32)
    if CODE == "E2M1":  # an exponent of 0 is 2 ** -127, which float32 has as half of its smallest normal number
        power = scales.to(tl.int32)
        scales = tl.where(power == 0, 1 << 22, power << 23).to(tl.float32, bitcast=True)
    zeros = tl.zeros_like(scales)
    if ZEROS != "":
        zeros = tl.load(zeros_ptr + at, mask=inside, other=0).to(tl.float32)
    elif CODE == "U4":
        zeros += 8
    return scales, zeros


@triton.jit
def load_tile(
    data_ptr, scales_ptr, zeros_ptr, row, start, K: tl.constexpr, COLUMNS: tl.constexpr, CODE: tl.constexpr,
    GROUP: tl.constexpr, ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """Both halves of a tile; if a scale is of whole outputs (GROUP 0), without it."""
    first, second = _load_codes(data_ptr, zeros_ptr, row, start, True, K, COLUMNS, CODE)
    if GROUP == 0:
        if CODE == "U4":
            first, second = first - 8, second - 8
    else:
        scales, zeros = _load_scales(
            scales_ptr, zeros_ptr, row, start, True, K, COLUMNS, CODE, GROUP, ROW_BLOCK, ZEROS
        )  # fmt: skip
        first = _in_units(first, scales, zeros, CODE, ZEROS)
        second = _in_units(second, scales, zeros, CODE, ZEROS) if are_nibbles(CODE) else first
    return first, second


@triton.jit
def _in_units(codes, scales, zeros, CODE: tl.constexpr, ZEROS: tl.constexpr):
    """A half of a tile, scaled by units: (code - zero) * scale, or code * scale - minimum."""
    rows: tl.constexpr = codes.shape[0]
    units: tl.constexpr = scales.shape[1]
    parts = tl.reshape(codes, [rows, units, codes.shape[1] // units])
    if ZEROS == "minimums":
        parts = parts * scales[:, :, None] - zeros[:, :, None]
    elif ZEROS == "codes" or CODE == "U4":
        parts = (parts - zeros[:, :, None]) * scales[:, :, None]
    else:
        parts *= scales[:, :, None]
    return tl.reshape(parts, codes.shape)


@triton.jit
def row_product(
    data_ptr, scales_ptr, zeros_ptr, row, x_ptr, order_ptr, is_wanted, K: tl.constexpr, COLUMNS: tl.constexpr,
    CODE: tl.constexpr, GROUP: tl.constexpr, ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr, IS_SORTED: tl.constexpr,
):  # fmt: skip
    """[rows]: whole rows of a matrix times one vector; units are summed before they are scaled. Unless they are wanted,
    nothing is read, and the result is 0. IS_SORTED: the matrix's inputs are those of the vector in this order."""
    first, second = _load_codes(data_ptr, zeros_ptr, row, 0, is_wanted, K, COLUMNS, CODE)
    k = first_inputs(COLUMNS, CODE)
    x = _vector(x_ptr, order_ptr, k, is_wanted & (k < K), IS_SORTED)
    total = first * x[None, :]
    if are_nibbles(CODE):
        later = _vector(x_ptr, order_ptr, k + 16, is_wanted & (k < K), IS_SORTED)
        total += second * later[None, :]
        x += later
    if GROUP == 0:  # a scale of each output
        y = tl.sum(total, 1)
        if CODE == "U4":
            y -= 8 * tl.sum(x, 0)
        return y * tl.load(scales_ptr + row)
    else:
        scales, zeros = _load_scales(
            scales_ptr, zeros_ptr, row, 0, is_wanted, K, COLUMNS, CODE, GROUP, ROW_BLOCK, ZEROS
        )  # fmt: skip
        units: tl.constexpr = COLUMNS // unit_of(GROUP)
        in_unit: tl.constexpr = total.shape[1] // units
        sums = tl.sum(tl.reshape(total, [total.shape[0], units, in_unit]), 2)
        inputs = tl.sum(tl.reshape(x, [units, in_unit]), 1)[None, :]
        if ZEROS == "minimums":
            return tl.sum(sums * scales - zeros * inputs, 1)
        elif ZEROS == "codes" or CODE == "U4":
            return tl.sum((sums - zeros * inputs) * scales, 1)
        else:
            return tl.sum(sums * scales, 1)


@triton.jit
def multiply_codes(
    rows, data_ptr, scales_ptr, zeros_ptr, order_ptr, output, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, UP: tl.constexpr, CODE: tl.constexpr, GROUP: tl.constexpr, ROW_BLOCK: tl.constexpr,
    ZEROS: tl.constexpr, IS_SORTED: tl.constexpr, UP_ORDER: tl.constexpr,
):  # fmt: skip
    """[BM, BN]: the vectors at the pointers `rows` times BN rows of a matrix, by their int64 places `output`; and times
    those UP further, unless that is 0, whose inputs are in an order UP_ORDER further. Codes become the vectors' type in
    registers, from where the matrix units take a left operand."""
    k = first_inputs(BK, CODE)
    y = tl.zeros([BN, BM], tl.float32)
    up = tl.zeros([BN, BM], tl.float32)
    for start in range(0, K, BK):
        x = _vectors(rows, order_ptr, start + k, start + k < K, IS_SORTED)
        later = _vectors(rows, order_ptr, start + k + 16, start + k < K, IS_SORTED) if are_nibbles(CODE) else x
        y = _add_products(
            y, x, later, data_ptr, scales_ptr, zeros_ptr, output, start, K, BK, CODE, GROUP, ROW_BLOCK, ZEROS
        )  # fmt: skip
        if UP != 0:
            if IS_SORTED and UP_ORDER != 0:
                x = _vectors(rows, order_ptr + UP_ORDER, start + k, start + k < K, IS_SORTED)
                later = (
                    _vectors(rows, order_ptr + UP_ORDER, start + k + 16, start + k < K, IS_SORTED)
                    if are_nibbles(CODE)
                    else x
                )
            up = _add_products(
                up, x, later, data_ptr, scales_ptr, zeros_ptr, output + UP, start, K, BK, CODE, GROUP, ROW_BLOCK,
                ZEROS,
            )  # fmt: skip
    return tl.trans(y), tl.trans(up)


@triton.jit
def _add_products(
    total, x, later, data_ptr, scales_ptr, zeros_ptr, output, start, K: tl.constexpr, BK: tl.constexpr,
    CODE: tl.constexpr, GROUP: tl.constexpr, ROW_BLOCK: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """[BN, BM]: total, and a tile times both halves of the vectors."""
    first, second = load_tile(
        data_ptr, scales_ptr, zeros_ptr, output, start, K, BK, CODE, GROUP, ROW_BLOCK, ZEROS
    )  # fmt: skip
    total = tl.dot(first.to(x.dtype), x, total, input_precision="ieee")
    if are_nibbles(CODE):
        total = tl.dot(second.to(x.dtype), later, total, input_precision="ieee")
    return total


@triton.jit
def _vector(x_ptr, order_ptr, k, inside, IS_SORTED: tl.constexpr):
    at = tl.load(order_ptr + k, mask=inside, other=0) if IS_SORTED else k
    return tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _vectors(rows, order_ptr, k, inside, IS_SORTED: tl.constexpr):
    at = tl.load(order_ptr + k, mask=inside, other=0) if IS_SORTED else k
    return tl.load(rows[None, :] + at[:, None], mask=inside[:, None], other=0.0)


@triton.jit
def _nibbles(nibble, table_ptr, CODE: tl.constexpr):
    """Of int32 from 0 to 15."""
    if CODE == "E2M1":  # moved to where float32 has its exponent and mantissa, and the missing bias multiplied in
        bits = ((nibble & 7) << 22) | ((nibble & 8) << 28)
        return bits.to(tl.float32, bitcast=True) * 8.507059173023462e37
    elif CODE != "U4":
        return tl.load(table_ptr + nibble)
    else:
        return ((nibble << 19) | 0x41800000).to(tl.float32, bitcast=True) - 16


@triton.jit
def _bytes(byte, CODE: tl.constexpr):
    if CODE == "I8":
        return byte.to(tl.int8, bitcast=True).to(tl.float32)
    elif CODE == "F8_BITS":  # F8_E4M3 on a GPU that cannot convert it; by float32's exponent, as E2M1
        bits = ((byte & 127).to(tl.int32) << 20) | ((byte & 128).to(tl.int32) << 24)
        return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36
    else:
        return byte.to(tl.float8e4nv, bitcast=True).to(tl.float32)
