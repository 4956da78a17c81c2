"""Compile the Gluon kernels, and those of latents, for Hopper, without a GPU: `python -m tests.gpu.compile_hopper`.

Prints each kernel's name and the shared memory that one of its programs takes. Not a test itself, since a process that
interprets kernels cannot compile any.
"""

from __future__ import annotations

from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from octavo.kernels.triton.attention import (
    fixed_attention,
    hopper_decode,
    hopper_prefill,
    latent_attention,
    latent_kv_write,
    triton_attention,
)
from octavo.kernels.triton.linear import tile_linear

HOPPER = GPUTarget("cuda", 90, 32)
INTS = (
    "block_table",
    "table_rows",
    "query_start_loc",
    "seq_lens",
    "slots",
    "positions",
    "totals",
    "tiles",
    "items",
    "counter",
)
FLOATS = ("part_values", "part_max_sum", "norm", "q_norm", "k_norm", "cos", "sin", "scales", "sinks")
HALVES = ("q", "kv", "out", "pool")
SWIZZLED = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16)
CODES = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=8)


def boxes(*shape: int, layout: gl.NVMMASharedLayout = SWIZZLED, element: str = "bf16") -> str:
    return f"tensordesc<{element}{list(shape)},{layout!r}>"


def compile_kernel(
    name: str, kernel: object, constants: dict[str, object], known: dict[str, str], **options: int
) -> None:
    signature = {
        argument: known.get(argument)
        or ("constexpr" if argument in constants else None)
        or ("*i32" if argument in INTS else "*fp32" if argument in FLOATS else None)
        or (
            "*bf16"
            if argument.endswith("_ptr") or argument in HALVES
            else "fp32"
            if argument in ("scale_log2", "eps")
            else "i32"
        )
        for argument in kernel.arg_names  # type: ignore[attr-defined]
    }
    positions = {(list(signature).index(argument),): value for argument, value in constants.items()}
    source = GluonASTSource if "gluon" in type(kernel).__module__ else ASTSource
    compiled = triton.compile(source(kernel, signature, positions, {}), target=HOPPER, options=options)
    print(name, compiled.metadata.shared, flush=True)


def main() -> None:
    for dim, has_codes in product(triton_attention.HOPPER_HEAD_DIMS, (False, True)):
        constants = {"HEADS": 16, "GROUP": 2, "D": dim, "BLOCK_SIZE": 16, "STAGES": 256 // dim, "CHAINED": True}
        constants |= {"HAS_CODES": has_codes, "HAS_SINKS": dim == 64}
        known = {"q_boxes": boxes(64, dim), "pool_boxes": boxes(16, dim)}
        if has_codes:
            known["pool_boxes"] = boxes(16, dim, layout=CODES, element="u8")
        name, registers = f"prefill-{dim}{'-codes' if has_codes else ''}", 128 if has_codes else 168
        compile_kernel(name, hopper_prefill._kernel, constants, known, num_warps=4, maxnreg=registers)
    for dim, fused in ((128, True), (128, False), (64, True)):
        constants = {
            "KV_HEADS": 8, "GROUP": 2, "D": dim, "BLOCK_SIZE": 16, "ROTARY": dim, "HAS_NORM": True, "FUSED": fused,
            "HAS_SINKS": fused, "STAGES": 384 // dim, "CHAINED": True,
        }  # fmt: skip
        known = {"boxes": boxes(16, dim)}
        compile_kernel(f"decode-{dim}-{fused}", hopper_decode._kernel, constants, known, num_warps=4, maxnreg=128)
    for rows, columns, stages, gate in ((64, 32, 7, ""), (64, 32, 3, "silu"), (128, 64, 3, "silu"), (64, 64, 7, "")):
        constants = {
            "ROWS": rows, "COLUMNS": columns, "STAGES": stages, "GATE": gate, "HAS_BIAS": False,
            "HAS_RESIDUAL": not gate, "CHAINED": True, "num_warps": rows // 16,
        }  # fmt: skip
        known = {
            "x_desc": boxes(16 if columns == 32 else rows, 128),
            "weight_desc": boxes(2 if gate else 1, columns, 128, layout=tile_linear._WEIGHT_LAYOUT),
        }
        name = f"tile-{rows}x{columns}-{gate or 'plain'}"
        compile_kernel(name, tile_linear._tile_kernel, constants, known, num_warps=rows // 16)
    sizes = {"RANK": 512, "ROTARY": 64, "ROTARY_PAD": 64, "BLOCK_SIZE": 16, "CHAINED": True}
    for rows, codes in ((16, ""), (64, ""), (16, "-codes")):
        constants = {
            "HEADS": 16, "OWN_HEADS": 16, "QUERIES": rows // 16, "IS_PLAIN": rows == 16, "ROWS": rows, "KEYS": 32,
            "HAS_CODES": bool(codes), "IS_FLOAT": bool(codes), "WIDTH": 128, "PIECES": 4,
        }  # fmt: skip
        options = {"num_warps": 4 if rows == 16 else 8, "num_stages": 2}
        known = {"pool": "*u8"} if codes else {}
        compile_kernel(f"latent-{rows}{codes}", latent_attention._attend_kernel, sizes | constants, known, **options)
    constants = {
        "GROUP": 16, "QUERIES": 4, "D": 512, "D_PAD": 512, "PIECES": 4, "WINDOW": 0, "ROTARY": 64, "ROTARY_PAD": 64,
        "ROWS": 64, "KEYS": 32, "IS_PLAIN": False, "BLOCK_SIZE": 16, "SOFTCAP": False, "HAS_SINKS": False,
        "HAS_CODES": True, "IS_FLOAT": True, "CHAINED": True,
    }  # fmt: skip
    known = {"pool": "*u8", "softcap": "fp32", "rows": "*i32"}
    compile_kernel("fixed-64-codes", fixed_attention._attend_kernel, constants, known, num_warps=8, num_stages=2)
    constants = {
        "Q_HEADS": 16,
        "HEADS_TILE": 16,
        "KEY_DIM": 128,
        "INTERLEAVES": True,
        "HAS_CODES": False,
        "RANK_PAD": 512,
    }
    compile_kernel("latent-write", latent_kv_write._latent_kv_write_kernel, sizes | constants, {}, num_warps=4)


if __name__ == "__main__":
    main()
