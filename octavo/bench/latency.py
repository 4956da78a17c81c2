"""How long one batch takes from the first step to the last token, again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.bench.workloads import random_workload
from octavo.llm import LLM
from octavo.sampling_params import SamplingParams

PERCENTAGES = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is timed: batch_size prompts of input_len tokens, n samples of output_len tokens from each."""

    input_len: int
    output_len: int
    batch_size: int
    n: int

    def latencies(self, llm: LLM, vocab_size: int, num_warm_up: int, num_iters: int) -> Iterator[float]:
        """Seconds of each iteration after the warm-up. Every iteration has prompts of its own, so that none is
        found in the prefix tree."""
        params = SamplingParams(n=self.n, temperature=1.0, ignore_eos=True, max_tokens=self.output_len)
        params = params.replace(detokenize=False)
        for iteration in range(num_warm_up + num_iters):
            work = random_workload(self.batch_size, self.input_len, 1, vocab_size=vocab_size, seed=iteration)
            begin = time.perf_counter()
            llm.generate([one.prompt_token_ids for one in work], params, use_tqdm=False)
            if iteration >= num_warm_up:
                yield time.perf_counter() - begin


def summary(latencies: Sequence[float]) -> dict[str, Any]:
    """Mean, every value, and percentiles, under vLLM's keys."""
    return {
        "avg_latency": float(np.mean(latencies)),
        "latencies": list(latencies),
        "percentiles": {str(p): float(np.percentile(latencies, p)) for p in PERCENTAGES},
    }
