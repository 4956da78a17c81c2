"""Octavo measured in this process: the throughput of a workload, and the latency of one batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.bench.report import Measurement
from octavo.bench.workloads import Work, random_workload
from octavo.llm import LLM
from octavo.sampling_params import SamplingParams

WARM_UP_LEN = 2


def measure_octavo(llm: LLM, workload: Sequence[Work], temperature: float, name: str = "octavo") -> Measurement:
    """Throughput of a workload. Every request generates exactly its length; nothing is detokenised."""
    prompts = [work.prompt_token_ids for work in workload]
    params = [_params(work, temperature) for work in workload]
    backwards = prompts[0][::-1]  # the workload's prompts must not enter the prefix tree
    llm.generate(backwards, params[0].replace(n=1, max_tokens=WARM_UP_LEN), use_tqdm=False)
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - begin
    num_output_tokens = sum(len(one.token_ids) for output in outputs for one in output.outputs)
    expected = sum(work.num_output_tokens for work in workload)
    assert num_output_tokens == expected, f"{num_output_tokens} tokens came out of a workload of {expected}"
    return Measurement(
        engine=name,
        seconds=seconds,
        num_requests=len(workload),
        num_prompt_tokens=sum(len(prompt) for prompt in prompts),
        num_output_tokens=num_output_tokens,
    )


def _params(work: Work, temperature: float) -> SamplingParams:
    return SamplingParams(
        n=work.n, temperature=temperature, ignore_eos=True, max_tokens=work.output_len, detokenize=False
    )


PERCENTAGES = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A timed batch: batch_size prompts of input_len tokens, with n samples of output_len tokens each."""

    input_len: int
    output_len: int
    batch_size: int
    n: int

    def latencies(self, llm: LLM, vocab_size: int, num_warm_up: int, num_iters: int) -> Iterator[float]:
        """Seconds of each iteration after the warm-up. Every iteration has new prompts, so that none hits the prefix
        tree."""
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
