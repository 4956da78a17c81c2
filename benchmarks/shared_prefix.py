"""How much faster a CPU's decode step is if its sequences share a prefix: they read its blocks through the caches.

    python -m benchmarks.shared_prefix [--model smollm2] [--sequences 16] [--prefix 2048] [--seconds 15]

The engine decodes as many sequences with one prefix in common, and with a prefix of their own each, in turns. All
prefixes stay in the prefix tree, so that only the first turn of each computes them. A step's time is the median of the
turn's steps in which all sequences decode; printed are the medians of the turns, and of the pairs' ratios. Other work
on the machine slows both of a pair; the load, and the processor time that it all took, are printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np

from octavo import LLM, SamplingParams
from octavo.bench.sharing_time import step_seconds
from octavo.observe.machine import cpu_name

OWN_TOKENS = 4  # after the prefix
BLOCK = 16
FEWEST_PAIRS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prefix", type=int, default=2048, help="its tokens")
    parser.add_argument("--new", type=int, default=8, help="decode steps of a turn")
    parser.add_argument("--seconds", type=float, default=15, help="of turns, after the prefixes are computed")
    args = parser.parse_args()
    length = args.prefix + OWN_TOKENS + args.new
    with LLM(
        args.model, backend="cpu", kv_cache_dtype="bfloat16", max_model_len=length, max_num_seqs=args.sequences,
        num_gpu_blocks_override=(args.sequences + 2) * (length // BLOCK + 2),
    ) as llm:  # fmt: skip
        turns = {shares: prompts_of(args.sequences, args.prefix, shares) for shares in (True, False)}
        params = SamplingParams(temperature=0, max_tokens=args.new, ignore_eos=True, detokenize=False)
        for prompts in turns.values():  # computes the prefixes
            llm.generate(prompts, params.replace(max_tokens=1), use_tqdm=False)
        shared, private = measured_pairs(llm, turns, params, args.seconds)
    ratios = sorted(one / other for one, other in zip(private, shared, strict=True))
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    print(f"{cpu_name()}, {args.model}, {args.sequences} sequences after {args.prefix} tokens, KV in bfloat16; {load}")
    print(f"shared {1e3 * statistics.median(shared):.2f} ms, private {1e3 * statistics.median(private):.2f} ms a step")
    print(
        f"private / shared, the median of {len(ratios)} pairs: {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}); {time.process_time():.0f} s of processor time"
    )


def measured_pairs(
    llm: LLM, turns: dict[bool, list[list[int]]], params: SamplingParams, seconds: float
) -> tuple[list[float], list[float]]:
    """Seconds of a step with a shared prefix, and with private ones; the order within a pair alternates."""
    times: dict[bool, list[float]] = {True: [], False: []}
    end = time.monotonic() + seconds
    while len(times[True]) <= FEWEST_PAIRS or time.monotonic() < end:
        for shares in (True, False) if len(times[True]) % 2 else (False, True):
            times[shares].append(step_of(llm, turns[shares], params))
    return times[True][1:], times[False][1:]  # the first turn warms up


def prompts_of(sequences: int, prefix: int, shares: bool) -> list[list[int]]:
    rng = np.random.default_rng(int(shares))
    first = rng.integers(10, 10_000, prefix).tolist()
    own = [first if shares else rng.integers(10, 10_000, prefix).tolist() for _ in range(sequences)]
    return [each + rng.integers(10, 10_000, OWN_TOKENS).tolist() for each in own]


def step_of(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> float:
    begin = time.monotonic()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert all(len(output.prompt_token_ids or ()) - (output.num_cached_tokens or 0) <= BLOCK for output in outputs)
    return step_seconds([event for event in llm.events if event.time >= begin], len(prompts))


if __name__ == "__main__":
    main()
