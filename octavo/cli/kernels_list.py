"""List the kernels of each op and of attention on this machine: which run, and why the others do not.

octavo kernels list                   all ops, and a GPU's attention backends
octavo kernels list softcap linear    only these ops
octavo kernels list paged_attention --num-heads 40 --head-dim 80
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any, get_args

from octavo.cli.flags import add_flags, check_counts
from octavo.cli.parser import CommandParser
from octavo.errors import ConfigError
from octavo.kernels.inventory import BLOCK_MOVES, Kernel, attention_kernels, backends, kernels_of
from octavo.kernels.kv_layout import KVDType
from octavo.kernels.ops import OPS
from octavo.shown import suggestion

_FLAGS = {
    "num-heads": ("N", 32, "query heads of the attention layer"),
    "num-kv-heads": ("N", 8, "its KV heads"),
    "head-dim": ("N", 128, "elements of a head"),
    "block-size": ("N", 16, "tokens of a KV block"),
    "window": ("N", None, "a sliding window of so many tokens"),
}


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo kernels list [OP ...] [options]"
    parser.add_argument("op", nargs="*", help="only these ops; default: all")
    add_flags(parser, _FLAGS)
    text = "the type that the layer computes in"
    parser.add_argument("--dtype", choices=get_args(KVDType), default="bfloat16", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    moves = {name: kernels_of(name) for name in BLOCK_MOVES if name in args.op or not args.op}
    ops = {name: kernels_of(name) for name in map(known_op, [op for op in args.op or OPS if op not in moves])}
    attention = attention_kernels(**_layer(args)) if "paged_attention" in ops else []
    if args.json:
        found = {"backends": backends(), "ops": ops, "block_moves": moves, "attention": attention}
        print(json.dumps(found, indent=2, default=asdict))
        return 0
    _print_backends()
    for name, kernels in (ops | moves).items():
        print(f"\n{name}  {BLOCK_MOVES.get(name) or _first_sentence(OPS[name].results.__doc__)}")
        _print_kernels(kernels)
    if attention:
        print(
            f"\nattention on a GPU: {args.num_heads} heads of {args.head_dim}, {args.num_kv_heads} of them KV, ", end=""
        )
        print(f"{args.dtype}, blocks of {args.block_size}")
        _print_kernels(attention)
        print("\nThe one that runs leaves what it does not compute (such as prompts) to those below it.")
    return 0


def known_op(name: str) -> str:
    if name not in OPS:
        raise ConfigError(f"there is no op {name!r}; {suggestion(name, OPS)}")
    return name


def _layer(args: argparse.Namespace) -> dict[str, Any]:
    check_counts(args, "num_heads", "num_kv_heads", "head_dim", "block_size", "window")
    if args.num_heads % args.num_kv_heads:
        raise ConfigError(
            f"--num-heads is {args.num_heads} and --num-kv-heads {args.num_kv_heads}; each KV head serves the same "
            "number of query heads: give a divisor"
        )
    return {
        name: getattr(args, name) for name in ("num_heads", "num_kv_heads", "head_dim", "block_size", "window", "dtype")
    }


def _print_backends() -> None:
    print("backends, best first")
    for name, why_not in backends().items():
        print(f"  {name:<13} {'works' if why_not is None else why_not}")


def _print_kernels(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        state = "runs" if kernel.runs else "works" if kernel.why_not is None else "not here"
        is_above = kernel.why_not in backends().values()
        reason = "" if kernel.why_not is None or is_above else kernel.why_not
        print(f"  {kernel.name:<13} {state:<9} {kernel.where:<53} {reason}".rstrip())


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split()).partition(". ")[0]
