"""octavo bench startup: seconds from a fresh process to a ready engine and its first token.

octavo bench startup --model smollm2
octavo bench startup --model FOLDER --load-format dummy --num-iters-cold 0
"""

from __future__ import annotations

import argparse
import statistics

from octavo.bench.report import machine
from octavo.cli.flags import add_engine_flags, check_counts, check_not_read, engine_options, whole_number, write_json
from octavo.cli.parser import CommandParser

COMMON = ("--model", "--num-iters-cold", "--num-iters-warm", "--output-json", "--load-format", "--backend")
_NOT_FLAGS = frozenset({"model"})


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model(default="smollm2")
    help_cold = "runs with an empty kernel cache (default: 1)"
    parser.add_argument("--num-iters-cold", type=whole_number, default=1, metavar="N", help=help_cold)
    help_warm = "runs with kernels already built (default: 5)"
    parser.add_argument("--num-iters-warm", type=whole_number, default=5, metavar="N", help=help_warm)
    parser.add_argument("--output-json", metavar="FILE", help="write the result as JSON")
    add_engine_flags(parser, _NOT_FLAGS)


def run(args: argparse.Namespace) -> int:
    check_not_read("--output-json", args.output_json, {"--model": args.model})
    from octavo.bench.startup import start_once

    check_counts(args, "num_iters_cold", "num_iters_warm", least=0)
    options = {"model": args.model, **engine_options(args, _NOT_FLAGS)}
    runs = {
        "cold": [start_once(options, is_cold=True) for _ in range(args.num_iters_cold)],
        "warm": [start_once(options, is_cold=False) for _ in range(args.num_iters_warm)],
    }
    print(f"{'seconds, medians':<18}{'import':>10}{'ready':>10}{'first token':>13}{'process':>10}")
    for name, times in runs.items():
        if times:
            medians = {key: statistics.median(one[key] for one in times) for key in times[0]}
            print(
                f"{name:<18}{medians['import']:>10.3f}{medians['ready']:>10.2f}"
                f"{medians['first_token']:>13.2f}{medians['process']:>10.2f}"
            )
    if args.output_json:
        write_json(args.output_json, {"machine": machine(), **runs})
    return 0
