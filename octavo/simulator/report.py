"""The result of a simulation: percentiles, rates and memory, as a table's row and as a record.

TTFT, TPOT and E2EL are those of the glossary, by request. ITL is the time between a step that brought tokens and the
one before it, by token. Percentiles are of all requests that ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from octavo.simulator.drive import Outcome

PERCENTAGES = (50, 90, 99)
METRICS = ("ttft", "tpot", "itl", "e2el")
#: columns of the table: percentages of each metric
_SHOWN = (("ttft", 50), ("ttft", 99), ("tpot", 50), ("tpot", 99), ("e2el", 50), ("e2el", 99))


@dataclass(frozen=True, slots=True)
class Result:
    """times_ms: (metric, percentage) -> milliseconds; None without a value. kv_use: share of blocks in use, averaged
    over time and engines. kv_peak: the largest, of one engine. hit_rate: share of prompt tokens that came from the
    prefix tree. num_cut: answers that the context length cut short. refusal: why the first refused request was."""

    times_ms: dict[tuple[str, int], float | None]
    num_requests: int
    num_refused: int
    refusal: str
    num_cut: int
    seconds: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    num_steps: int
    num_preemptions: int
    hit_rate: float
    kv_use: float
    kv_peak: float

    def cells(self) -> list[str]:
        times = [self.times_ms[column] for column in _SHOWN]
        return [
            *["-" if value is None else f"{value:,.1f}" for value in times],
            f"{self.requests_per_s:,.2f}",
            f"{self.output_tokens_per_s:,.0f}",
            f"{self.num_preemptions:,}",
            f"{self.hit_rate:.1%}",
            f"{self.kv_use:.1%}",
            f"{self.kv_peak:.1%}",
        ]

    def record(self) -> dict[str, Any]:
        """Latencies under the keys of `octavo bench serve`."""
        return {
            "completed": self.num_requests,
            "refused": self.num_refused,
            "refusal": self.refusal,
            "cut_short": self.num_cut,
            "duration": self.seconds,
            "request_throughput": self.requests_per_s,
            "output_throughput": self.output_tokens_per_s,
            "total_token_throughput": self.total_tokens_per_s,
            "steps": self.num_steps,
            "preemptions": self.num_preemptions,
            "prefix_cache_hit_rate": self.hit_rate,
            "kv_cache_usage": self.kv_use,
            "kv_cache_usage_peak": self.kv_peak,
            **{f"p{percentage}_{metric}_ms": value for (metric, percentage), value in self.times_ms.items()},
        }


HEADINGS = [
    *(f"{metric.upper()} p{percentage}" for metric, percentage in _SHOWN),
    *("req/s", "out tok/s", "preempted", "prefix hits", "KV use", "KV peak"),
]


def result_of(outcome: Outcome, num_blocks: int, num_engines: int = 1) -> Result:
    """num_blocks: of each engine, without the null block."""
    seconds = outcome.seconds
    per_second = 1 / seconds if seconds > 0 else 0.0
    times = {"ttft": outcome.ttfts, "tpot": outcome.tpots, "e2el": outcome.e2els}
    found = {metric: percentiles_ms(values) for metric, values in times.items()}
    found["itl"] = _weighted_ms(outcome.gaps, outcome.gap_counts)
    return Result(
        times_ms={
            (metric, percentage): value
            for metric in METRICS
            for percentage, value in zip(PERCENTAGES, found[metric], strict=True)
        },
        num_requests=len(outcome.ttfts),
        num_refused=outcome.num_refused,
        refusal=outcome.refusal,
        num_cut=outcome.num_cut,
        seconds=seconds,
        requests_per_s=len(outcome.ttfts) * per_second,
        output_tokens_per_s=outcome.num_output_tokens * per_second,
        total_tokens_per_s=(outcome.num_prompt_tokens + outcome.num_output_tokens) * per_second,
        num_steps=outcome.num_steps,
        num_preemptions=outcome.num_preemptions,
        hit_rate=outcome.num_cached_tokens / max(1, outcome.num_prompt_tokens),
        kv_use=outcome.block_seconds * per_second / num_blocks / num_engines,
        kv_peak=outcome.peak_blocks / num_blocks,
    )


def percentiles_ms(seconds: Sequence[float]) -> list[float | None]:
    if not len(seconds):
        return [None] * len(PERCENTAGES)
    return [float(value) for value in 1e3 * np.percentile(np.asarray(seconds), PERCENTAGES)]


def _weighted_ms(seconds: ArrayLike, counts: ArrayLike) -> list[float | None]:
    """Percentiles of values that stand for so many each."""
    values, weights = np.asarray(seconds, np.float64), np.asarray(counts)
    if not values.size:
        return [None] * len(PERCENTAGES)
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    places = [np.searchsorted(reached, percentage / 100 * reached[-1]) for percentage in PERCENTAGES]
    return [float(1e3 * values[order[min(place, values.size - 1)]]) for place in places]
