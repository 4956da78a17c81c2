"""octavo bench latency: seconds of one batch, from the first step to the last token, under vLLM's flag names.

octavo bench latency --model smollm2 --input-len 32 --output-len 128 --batch-size 8
"""

from __future__ import annotations

import argparse

from octavo.bench.report import machine
from octavo.cli.flags import (
    add_engine_flags,
    check_counts,
    check_not_read,
    engine_options,
    vocab_size,
    whole_number,
    write_json,
)
from octavo.cli.parser import CommandParser

COMMON = (
    *("--model", "--input-len", "--output-len", "--batch-size", "--n", "--num-iters-warmup", "--num-iters"),
    *("--output-json", "--load-format", "--backend"),
)
_NOT_FLAGS = frozenset({"model"})


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model(default="smollm2")
    counts = {
        "input-len": (32, "prompt tokens"),
        "output-len": (128, "new tokens per sequence"),
        "batch-size": (8, "prompts per batch"),
        "n": (1, "sequences sampled from each prompt"),
        "num-iters-warmup": (10, "warm-up iterations, not counted"),
        "num-iters": (30, "iterations"),
    }
    for name, (default, text) in counts.items():
        help_text = f"{text} (default: {default})"
        parser.add_argument(f"--{name}", type=whole_number, default=default, metavar="N", help=help_text)
    parser.add_argument("--output-json", metavar="FILE", help="write the result as JSON")
    add_engine_flags(parser, _NOT_FLAGS)


def run(args: argparse.Namespace) -> int:
    check_not_read("--output-json", args.output_json, {"--model": args.model})
    from octavo.bench.offline import Batch, summary
    from octavo.llm import LLM

    check_counts(args, "input_len", "output_len", "batch_size", "n", "num_iters")
    check_counts(args, "num_iters_warmup", least=0)
    batch = Batch(input_len=args.input_len, output_len=args.output_len, batch_size=args.batch_size, n=args.n)
    num_tokens = vocab_size(args)
    with LLM(args.model, **engine_options(args, _NOT_FLAGS)) as llm:
        result = summary(list(batch.latencies(llm, num_tokens, args.num_iters_warmup, args.num_iters)))
    print(f"average: {result['avg_latency']:.4f} s")
    for percentage, seconds in result["percentiles"].items():
        print(f"{percentage:>2}% percentile: {seconds:.4f} s")
    if args.output_json:
        write_json(args.output_json, {"machine": machine(), **result})
    return 0
