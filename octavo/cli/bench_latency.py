"""octavo bench latency: seconds of one batch, from the first step to the last token, under vLLM's flag names.

octavo bench latency --model smollm2 --input-len 32 --output-len 128 --batch-size 8
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from octavo.bench.workloads import random_workload
from octavo.cli.bench_vllm_flags import LATENCY_FLAGS
from octavo.cli.flags import add_engine_flags, add_flags, check_counts, check_not_read, engine_options, vocab_size
from octavo.cli.parser import CommandParser
from octavo.cli.written_files import write_json
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from octavo.llm import LLM

COMMON = (
    *("--model", "--input-len", "--output-len", "--batch-size", "--n", "--num-iters-warmup", "--num-iters"),
    *("--output-json", "--load-format", "--backend"),
)
PERCENTAGES = (10, 25, 50, 75, 90, 99)
_FLAGS = {
    "input-len": ("N", 32, "prompt tokens"),
    "output-len": ("N", 128, "new tokens per sequence"),
    "batch-size": ("N", 8, "prompts per batch"),
    "n": ("N", 1, "sequences sampled from each prompt"),
    "num-iters-warmup": ("N", 10, "warm-up iterations, not counted"),
    "num-iters": ("N", 30, "iterations"),
    "output-json": ("FILE", None, "write the result as JSON"),
}


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model(default="smollm2")
    add_flags(parser, _FLAGS)
    parser.lacks(LATENCY_FLAGS)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    check_not_read("--output-json", args.output_json, {"--model": args.model})
    import numpy as np

    from octavo.llm import LLM

    check_counts(args, "input_len", "output_len", "batch_size", "n", "num_iters")
    check_counts(args, "num_iters_warmup", least=0)
    num_tokens = vocab_size(args)
    with LLM(args.model, **engine_options(args)) as llm:
        latencies = list(_latencies(llm, args, num_tokens))
    average = float(np.mean(latencies))
    percentiles = {str(p): float(np.percentile(latencies, p)) for p in PERCENTAGES}
    print(f"average: {average:.4f} s")
    for percentage, seconds in percentiles.items():
        print(f"{percentage:>2}% percentile: {seconds:.4f} s")
    if args.output_json:
        result = {"avg_latency": average, "latencies": latencies, "percentiles": percentiles}  # vLLM's keys
        write_json(args.output_json, result)
    return 0


def _latencies(llm: LLM, args: argparse.Namespace, num_tokens: int) -> Iterator[float]:
    """Seconds of each iteration after the warm-up. Each has new prompts, so that none is in the prefix cache."""
    from octavo.bench.offline import check_lengths

    params = SamplingParams(n=args.n, temperature=1.0, ignore_eos=True, max_tokens=args.output_len, detokenize=False)
    for iteration in range(args.num_iters_warmup + args.num_iters):
        work = random_workload(
            *(args.batch_size, args.input_len, args.output_len), vocab_size=num_tokens, seed=iteration
        )
        check_lengths(llm, work)
        begin = time.perf_counter()
        llm.generate([one.prompt_token_ids for one in work], params, use_tqdm=False)
        if iteration >= args.num_iters_warmup:
            yield time.perf_counter() - begin
