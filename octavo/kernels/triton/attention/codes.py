"""The codes of an 8-bit KV cache, in Triton: e4m3 in unsigned bytes, or signed bytes.

    e4m3   s eeee mmm          its exponent is biased by 7, that of a half by 15. So the same bits, moved to
    half   s 0eeee mmm0000000  a half's places, are the number divided by 2^8, subnormal ones included

Kernels multiply codes without their scales: `unit` has a scale and that factor, which a head's scores or its result
then take. No instruction of a newer GPU is needed. A pool of numbers passes through these functions unchanged.

Two codes fit in a register of two halves, and Triton computes on them one by one; so on a GPU they are moved by
instructions of ours, four at a time. A bfloat16 has its exponent elsewhere, and takes a product more:

    bfloat16   s 0000eeee mmm0000     the number divided by 2^120, times 2^112
"""

from __future__ import annotations

import triton
import triton.language as tl

_HALF = tl.constexpr("""{
    .reg .b32 low, high, sign;
    prmt.b32 low, $2, 0, 0x1404;
    prmt.b32 high, $2, 0, 0x3424;
    and.b32 sign, low, 0x80008000;
    shr.b32 low, low, 1;
    lop3.b32 $0, low, 0x3f803f80, sign, 0xea;
    and.b32 sign, high, 0x80008000;
    shr.b32 high, high, 1;
    lop3.b32 $1, high, 0x3f803f80, sign, 0xea;
}""")
_BFLOAT16 = tl.constexpr("""{
    .reg .b32 low, high, sign, factor, zero;
    mov.b32 factor, 0x77807780;
    mov.b32 zero, 0x80008000;
    prmt.b32 low, $2, 0, 0x1404;
    prmt.b32 high, $2, 0, 0x3424;
    and.b32 sign, low, 0x80008000;
    shr.b32 low, low, 4;
    lop3.b32 low, low, 0x07f007f0, sign, 0xea;
    fma.rn.bf16x2 $0, low, factor, zero;
    and.b32 sign, high, 0x80008000;
    shr.b32 high, high, 4;
    lop3.b32 high, high, 0x07f007f0, sign, 0xea;
    fma.rn.bf16x2 $1, high, factor, zero;
}""")
_IS_COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def unit(scales, head, HAS_CODES: tl.constexpr, IS_FLOAT: tl.constexpr):
    """What loaded elements of a head are to be multiplied by. IS_FLOAT: codes are e4m3."""
    result = 1.0
    if HAS_CODES:
        result = tl.load(scales + head)
        if IS_FLOAT:
            result *= 256.0
    return result


@triton.jit
def loaded(x, dtype: tl.constexpr, IS_SHARED: tl.constexpr = False):
    """Elements of the pool in the type that they are multiplied in. IS_SHARED: by two products, for which codes are to
    become numbers once; Triton would move that into each product, and then load them without running ahead."""
    if x.dtype == tl.uint8:
        if _IS_COMPILED and dtype == tl.bfloat16:
            x = tl.inline_asm_elementwise(_BFLOAT16, "=r,=r,r", [x], dtype=tl.bfloat16, is_pure=not IS_SHARED, pack=4)
        elif _IS_COMPILED and dtype == tl.float16:
            x = tl.inline_asm_elementwise(_HALF, "=r,=r,r", [x], dtype=tl.float16, is_pure=not IS_SHARED, pack=4)
        else:
            wide = x.to(tl.uint16)
            x = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)
    return x.to(dtype)


@triton.jit
def stored(x, scale, dtype: tl.constexpr):
    """Numbers as elements of the pool: the nearest code, ties to even. scale: of codes."""
    if dtype == tl.uint8:
        x = x.to(tl.float32) / scale
        magnitude = tl.minimum(tl.abs(x), 448.0)
        bits = magnitude.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        # the addition rounds to multiples of the smallest e4m3, and counts them
        counted = (magnitude + 16384.0).to(tl.int32, bitcast=True) & 0x0F
        sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
        codes = (tl.where(magnitude < 0.015625, counted, rounded) | sign).to(tl.uint8)
    elif dtype == tl.int8:
        x = tl.minimum(tl.maximum(x.to(tl.float32) / scale, -127.0), 127.0)
        codes = ((x + 12582912.0) - 12582912.0).to(tl.int8)  # 1.5 * 2^23: the addition rounds to a whole number
    else:
        codes = x.to(dtype)
    return codes
