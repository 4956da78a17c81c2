"""A measurement as a line for people and as JSON under vLLM's keys."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from octavo import __version__
from octavo.observe.machine import cpu_features, cpu_name, num_cores


@dataclass(frozen=True, slots=True)
class Measurement:
    """One engine on one workload."""

    engine: str
    seconds: float
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int

    @property
    def output_rate(self) -> float:
        """Generated tokens per second, prefill time included."""
        return self.num_output_tokens / self.seconds

    def line(self) -> str:
        total = self.num_prompt_tokens + self.num_output_tokens
        return (
            f"{self.engine}: {self.num_requests / self.seconds:.2f} requests/s, "
            f"{total / self.seconds:,.1f} total tokens/s, {self.output_rate:,.1f} output tokens/s "
            f"({self.num_prompt_tokens:,} in, {self.num_output_tokens:,} out, {self.seconds:.2f} s)"
        )

    def record(self) -> dict[str, Any]:
        total = self.num_prompt_tokens + self.num_output_tokens
        return {
            "engine": self.engine,
            "elapsed_time": self.seconds,
            "num_requests": self.num_requests,
            "total_num_tokens": total,
            "total_output_tokens": self.num_output_tokens,
            "requests_per_second": self.num_requests / self.seconds,
            "tokens_per_second": total / self.seconds,
            "output_tokens_per_second": self.output_rate,
        }


def ratio_line(ours: Measurement, theirs: Measurement) -> str:
    return (
        f"{ours.engine} makes {ours.output_rate / theirs.output_rate:.2f} times the output tokens/s of {theirs.engine}"
    )


def machine() -> dict[str, Any]:
    """The machine and versions of a measurement."""
    return {
        "octavo": __version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "features": cpu_features(),
        "cores": num_cores(),
    }
