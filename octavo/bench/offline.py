"""Throughput of Octavo on a workload: all requests at once, from the first step to the last token."""

from __future__ import annotations

import time
from collections.abc import Sequence

from octavo.bench.report import Measurement
from octavo.bench.workloads import Work
from octavo.llm import LLM
from octavo.sampling_params import SamplingParams

WARM_UP_LEN = 2


def measure_octavo(llm: LLM, workload: Sequence[Work], temperature: float, name: str = "octavo") -> Measurement:
    """Every request generates exactly its length: end tokens are ignored, and nothing is detokenised."""
    prompts = [work.prompt_token_ids for work in workload]
    params = [_params(work, temperature) for work in workload]
    backwards = prompts[0][::-1]  # the prefix tree must not know the workload's own prompts
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
