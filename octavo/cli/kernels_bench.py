"""Time an op at several shapes, beside what this machine can move and multiply.

octavo kernels bench rms_norm              on the backend that runs it here
octavo kernels bench linear --backend cpu
octavo kernels bench paged_attention       beside torch, flash-attn, flashinfer

More than 100 % of the limit means that the data came from the cache.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from octavo.cli.kernels_list import known_op
from octavo.cli.parser import CommandParser
from octavo.errors import BackendUnavailableError, ConfigError
from octavo.kernels.inventory import BLOCK_MOVES, backends, kernels_of

if TYPE_CHECKING:
    from octavo.testing.op_cases import Case, Sizes

MEASURED = ("triton", "cpu")


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo kernels bench OP [options]"
    parser.add_argument("op", metavar="OP", help="as `octavo kernels list` names it")
    parser.add_argument("--backend", choices=MEASURED, help="default: the one that runs the op here")


def run(args: argparse.Namespace) -> int:
    op = args.op if args.op in BLOCK_MOVES else known_op(args.op)
    backend = _backend(op, args.backend)
    from octavo.testing.op_bench import limits_of, machine_name, measure, measure_moves
    from octavo.testing.op_cases import SIZES

    sizes, limits = SIZES[backend], limits_of(backend)
    print(f"{op} on {machine_name(backend)}, backend {backend}, {sizes.dtype}")
    print(f"limits measured now: {limits.moved / 1e9:,.1f} GB/s, {limits.multiplied / 1e9:,.0f} GFLOP/s\n")
    peers = _peer_names() if op == "paged_attention" else []
    print(f"{'shape':<46} {'time':>11} {'rate':>15} {'of limit':>9}" + "".join(f"  {name:>13}" for name in peers))
    is_move = op in BLOCK_MOVES
    rows = measure_moves(op, backend, limits.moved) if is_move else measure(op, backend, sizes, limits)
    for row in rows:
        times = "".join(f"  {_peer(name, row.case, sizes, backend):>13}" for name in peers)
        print(f"{row.case.label:<46} {row.seconds * 1e6:>8,.1f} us {row.rate:>15} {row.share:>9.0%}{times}", flush=True)
    return 0


def _backend(op: str, asked: str | None) -> str:
    name = asked or next((kernel.name for kernel in kernels_of(op) if kernel.runs), "reference")
    if (why_not := backends()[name]) is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {why_not}")
    if name not in MEASURED:
        raise ConfigError(f"only the {name} backend runs {op} here, and it is not made for speed: none is measured")
    return name


def _peer_names() -> list[str]:
    """None without torch."""
    try:
        from octavo.kernels.external.attention_peers import PEERS
    except ImportError:
        return []
    return list(PEERS)


def _peer(name: str, case: Case, sizes: Sizes, backend: str) -> str:
    from octavo.kernels.external.attention_peers import Shape, peer_us

    measured = peer_us(name, Shape(*case.step, *sizes.heads), "cpu" if backend == "cpu" else "cuda")
    return measured if isinstance(measured, str) else f"{measured:,.1f} us"
