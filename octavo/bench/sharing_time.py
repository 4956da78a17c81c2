"""What sharing saves in time: that of a step, and tokens per second of a call.

Measured with a model: n samples of one prompt in turn with n requests of that prompt that share nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.bench.offline import check_lengths
from octavo.bench.workloads import Work, random_workload
from octavo.errors import ConfigError
from octavo.llm import LLM
from octavo.observe.events import Event, StepDone
from octavo.sampling_params import RequestOutputKind, SamplingParams


@dataclass(frozen=True, slots=True)
class Timing:
    """n samples of one prompt, or n requests. step_s: the median of steps in which all n decode."""

    n: int
    is_shared: bool
    step_s: float
    output_rate: float  # tokens per second of the whole call, prefill included
    kv_bytes_read: int  # by the last step in which all n decode, if it reads shared blocks once

    def record(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "shared": self.is_shared,
            "step_s": self.step_s,
            "decode_tokens_per_second": self.n / self.step_s,
            "output_tokens_per_second": self.output_rate,
            "kv_bytes_read_per_step": self.kv_bytes_read,
        }


def time_samples(llm: LLM, n: int, input_len: int, output_len: int, rounds: int, vocab_size: int) -> list[Timing]:
    """Samples in turn with separate requests; the first round is warm-up. The LLM must not cache prefixes."""
    taken: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for turn in range(rounds + 1):
        (work,) = random_workload(1, input_len, output_len, n=n, vocab_size=vocab_size, seed=turn)
        check_lengths(llm, [work])
        for is_shared in (True, False) if turn % 2 else (False, True):
            taken[is_shared].append(_call(llm, work, is_shared))
    timings = []
    for is_shared, calls in taken.items():
        steps, seconds = (statistics.median(column) for column in zip(*calls[1:], strict=True))
        rate, read = n * output_len / seconds, _bytes_read(llm, work, is_shared)
        timings.append(Timing(n, is_shared, steps, rate, read))
    return timings


def _asked(work: Work, is_shared: bool, **more: Any) -> tuple[list[tuple[int, ...]], list[SamplingParams]]:
    """Prompts, and their parameters: one of n samples, or n of one. All draw different tokens."""
    options: dict[str, Any] = {"max_tokens": work.output_len, "ignore_eos": True, "detokenize": False, **more}
    if is_shared:
        return [work.prompt_token_ids], [SamplingParams(n=work.n, seed=0, **options)]
    return [work.prompt_token_ids] * work.n, [SamplingParams(seed=index, **options) for index in range(work.n)]


def _call(llm: LLM, work: Work, is_shared: bool) -> tuple[float, float]:
    """Seconds of a step, and of the call."""
    prompts, params = _asked(work, is_shared)
    begin = time.monotonic()  # the events' clock
    llm.generate(prompts, params, use_tqdm=False)
    seconds = time.monotonic() - begin
    return step_seconds([event for event in llm.events if event.time >= begin], work.n), seconds


def step_seconds(events: Sequence[Event], num_seqs: int) -> float:
    """The median time between the ends of steps in which so many sequences decode."""
    ends = [event for event in events if isinstance(event, StepDone)]
    decodes = [event.num_seqs == event.num_tokens == num_seqs for event in ends]
    times = [ends[i].time - ends[i - 1].time for i in range(1, len(ends)) if decodes[i - 1] and decodes[i]]
    if not times:
        raise ConfigError(
            f"no two steps had {num_seqs} sequences that decode: the first ended, or there was no seat, while others' "
            "prompts were computed; raise --output-len, --max-num-batched-tokens or --max-num-seqs"
        )
    return statistics.median(times)


def _bytes_read(llm: LLM, work: Work, is_shared: bool) -> int:
    """Asked for while a call runs that is not timed."""
    prompts, params = _asked(work, is_shared, output_kind=RequestOutputKind.DELTA)
    read = 0
    for _ in llm.stream(prompts, params):
        stats = llm.stats()
        if stats.num_running == work.n:
            read = max(read, stats.kv_bytes_read)
    return read


def timing_table(timings: Mapping[int, Sequence[Timing]]) -> list[list[str]]:
    """A row of headings, then a row for each n."""
    rows = [["n", "step, samples", "step, requests", "faster", "out tok/s", "requests'", "KV MiB/step", "requests'"]]
    for n, (shared, apart) in timings.items():
        steps = [f"{shared.step_s * 1e3:.2f} ms", f"{apart.step_s * 1e3:.2f} ms"]
        rates = [f"{one.output_rate:,.1f}" for one in (shared, apart)]
        read = [f"{one.kv_bytes_read / 2**20:,.1f}" for one in (shared, apart)]
        rows.append([str(n), *steps, f"{apart.step_s / shared.step_s:.2f} x", *rates, *read])
    return rows
