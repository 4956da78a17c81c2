"""The results of a load on a server, under vLLM's keys.

TTFT    from sending to the first piece of text          E2EL   from sending to the end
TPOT    (E2EL - TTFT) / (tokens of a sequence - 1)       ITL    between two pieces of one sequence

A server may join several tokens into one piece when its reader lags. So ITL measures gaps between pieces, as the reader
sees them, and TPOT uses the token count of the server's usage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from octavo.bench.answer import Answer
from octavo.bench.load import Sent
from octavo.errors import ConfigError

Metric = Literal["ttft", "tpot", "itl", "e2el"]
METRICS: tuple[Metric, ...] = get_args(Metric)
GOODPUT_METRICS = ("ttft", "tpot", "e2el")
NAMES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "e2el": "end-to-end latency",
}
BUSY_CLIENT = 0.9  # of a core
MAX_ERRORS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """One measured load. num_sequences: request index -> sequences sampled; num_long_prompts: the number of different
    long prompts."""

    sent: Sent
    num_sequences: Mapping[int, int]
    num_long_prompts: int = 0

    @property
    def completed(self) -> list[Answer]:
        return [answer for answer in self.sent.answers if not answer.error]

    @property
    def errors(self) -> Counter[str]:
        return Counter(answer.error for answer in self.sent.answers if answer.error)

    def times_ms(self, metric: Metric, answers: Sequence[Answer] | None = None) -> list[float]:
        """One number per request, or per gap for ITL. TPOT skips requests with fewer than two tokens."""
        answers = self.completed if answers is None else answers
        if metric == "itl":
            return [1000 * gap for answer in answers for gap in answer.gaps]
        if metric == "tpot":
            return [tpot for answer in answers if (tpot := self._tpot_ms(answer)) is not None]
        return [1000 * (answer.ttft if metric == "ttft" else answer.e2el) for answer in answers]

    def percentile_ms(self, metric: Metric, percentage: float) -> float | None:
        times = self.times_ms(metric)
        return float(np.percentile(times, percentage)) if times else None

    def num_good(self, limits_ms: Mapping[str, float]) -> int:
        """Completed requests within every limit. A single token has no TPOT to check."""
        return sum(self._is_good(answer, limits_ms) for answer in self.completed)

    def _is_good(self, answer: Answer, limits_ms: Mapping[str, float]) -> bool:
        took = {"ttft": 1000 * answer.ttft, "tpot": self._tpot_ms(answer) or 0.0, "e2el": 1000 * answer.e2el}
        return all(took[metric] <= limit for metric, limit in limits_ms.items())

    def _tpot_ms(self, answer: Answer) -> float | None:
        num_tokens = answer.num_output_tokens / self.num_sequences[answer.index]
        return 1000 * (answer.e2el - answer.ttft) / (num_tokens - 1) if num_tokens > 1 else None


def summary(
    outcome: Outcome, metrics: Sequence[Metric], percentages: Sequence[float], goodput_ms: Mapping[str, float]
) -> dict[str, Any]:
    """The result under vLLM's keys. A metric without values is null."""
    done = outcome.completed
    seconds = outcome.sent.seconds
    num_in = sum(answer.num_prompt_tokens for answer in done)
    num_out = sum(answer.num_output_tokens for answer in done)
    num_cached = sum(answer.num_cached_tokens for answer in done)
    peak_tokens, peak_requests = peaks(outcome)
    result: dict[str, Any] = {
        "duration": seconds,
        "completed": len(done),
        "failed": len(outcome.sent.answers) - len(done),
        "total_input_tokens": num_in,
        "total_output_tokens": num_out,
        "total_cached_tokens": num_cached,
        "request_throughput": len(done) / seconds,
        "request_goodput": outcome.num_good(goodput_ms) / seconds if goodput_ms else None,
        "output_throughput": num_out / seconds,
        "total_token_throughput": (num_in + num_out) / seconds,
        "max_output_tokens_per_s": peak_tokens if seconds >= 1 else None,  # the run was shorter than one second
        "max_concurrent_requests": peak_requests,
        "client_cpu_share": outcome.sent.cpu / seconds,
        "without_usage": sum(not answer.has_usage for answer in done),
    }
    for metric in metrics:
        result |= _statistics(metric, outcome.times_ms(metric), percentages)
    if outcome.num_long_prompts:
        result["long_prefill"] = _long_prefill(outcome, percentages)
    return result


def _long_prefill(outcome: Outcome, percentages: Sequence[float]) -> dict[str, Any]:
    """The additional long prompts. Those without an answer when the last request ended were cut off."""
    answers = outcome.sent.long_answers
    failed = sum(bool(answer.error) for answer in answers)
    times = [1000 * answer.ttft for answer in answers if answer.last and not answer.error]
    return {
        "completed": len(times),
        "failed": failed,
        "cut_off": len(answers) - failed - len(times),
        "repeated": max(0, len(answers) - outcome.num_long_prompts),
        **_statistics("ttft", times, percentages),
    }


def details(outcome: Outcome) -> dict[str, Any]:
    """Every request's own numbers in the order of the requests, under vLLM's keys. Times are seconds."""
    answers = sorted(outcome.sent.answers, key=lambda answer: answer.index)
    return {
        "input_lens": [answer.num_prompt_tokens for answer in answers],
        "output_lens": [answer.num_output_tokens for answer in answers],
        "start_times": [answer.start - outcome.sent.begin for answer in answers],
        "ttfts": [0.0 if answer.error else answer.ttft for answer in answers],
        "itls": [answer.gaps.tolist() for answer in answers],
        "generated_texts": [answer.text for answer in answers],
        "errors": [answer.error for answer in answers],
    }


def peaks(outcome: Outcome) -> tuple[float, int]:
    """Peak output tokens in any one second, and peak concurrent requests. A request's tokens are spread evenly over its
    pieces, whose token counts are unknown; the gaps of its n sequences overlap."""
    done = outcome.completed
    if not done:
        return 0.0, 0
    times, tokens = [], []
    for answer in done:
        gaps = np.asarray(answer.gaps) / outcome.num_sequences[answer.index]
        times.append(answer.first + np.concatenate([[0.0], np.cumsum(gaps)]))
        tokens.append(np.full(len(gaps) + 1, answer.num_output_tokens / (len(gaps) + 1)))
    order = np.argsort(at := np.concatenate(times))
    before = np.concatenate([[0.0], np.cumsum(np.concatenate(tokens)[order])])  # tokens before the i-th piece
    a_second_later = np.searchsorted(at[order], at[order] + 1.0)
    moves = sorted([(answer.start, 1) for answer in done] + [(answer.last, -1) for answer in done])
    return float((before[a_second_later] - before[:-1]).max()), int(np.cumsum([move for _, move in moves]).max())


def parse_goodput(limits: Sequence[str]) -> dict[str, float]:
    """ttft:200 tpot:50 e2el:5000, in milliseconds."""
    found: dict[str, float] = {}
    for limit in limits:
        name, _, value = limit.partition(":")
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = -1.0
        if name not in GOODPUT_METRICS or not milliseconds >= 0:
            raise ConfigError(
                f"--goodput {limit} is not METRIC:MILLISECONDS, such as ttft:200; "
                f"allowed metrics are {', '.join(GOODPUT_METRICS)}"
            )
        found[name] = milliseconds
    return found


def warnings(result: Mapping[str, Any], errors: Counter[str]) -> list[str]:
    """Caveats about a result."""
    lines = [f"{count} x {error}" for error, count in errors.most_common(MAX_ERRORS_SHOWN)]
    if len(errors) > MAX_ERRORS_SHOWN:
        lines.append(f"and {len(errors) - MAX_ERRORS_SHOWN} other errors")
    if result["client_cpu_share"] > BUSY_CLIENT:
        lines.append(
            f"the client was busy {result['client_cpu_share']:.0%} of the time, so the times are partly its own: "
            "raise --num-client-procs"
        )
    if result["total_cached_tokens"]:
        share = result["total_cached_tokens"] / max(1, result["total_input_tokens"])
        lines.append(
            f"{share:.0%} of the prompt tokens came from the server's prefix cache; if that is not intended, "
            "draw other prompts with --seed"
        )
    if result["without_usage"]:
        lines.append(
            f"the server sent no usage for {result['without_usage']} requests: their tokens are counted as pieces "
            "of text, and a piece may hold several tokens"
        )
    repeated = result.get("long_prefill", {}).get("repeated", 0)
    if repeated:
        lines.append(f"{repeated} long prompts had been sent before, and a prefix cache may have known them")
    return lines


def _statistics(metric: Metric, times_ms: Sequence[float], percentages: Sequence[float]) -> dict[str, float | None]:
    times = np.asarray(times_ms)
    found: dict[str, float | None] = dict.fromkeys([f"{name}_{metric}_ms" for name in ("mean", "median", "std")])
    if times_ms:
        found = dict(zip(found, (float(times.mean()), float(np.median(times)), float(times.std())), strict=True))
    for percentage in percentages:
        value = float(np.percentile(times_ms, percentage)) if times_ms else None
        found[f"p{percentage:g}_{metric}_ms"] = value
    return found
