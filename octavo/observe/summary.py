"""A log line every ten seconds: the engine's throughput since the last one.

prompt 812.0 tok/s, generation 3,204.5 tok/s, running 64, waiting 3, KV 41.2%, prefix hits 37.5%
"""

from __future__ import annotations

from collections.abc import Callable

from octavo.observe.logging import LOGGER
from octavo.observe.metrics import EngineMetrics

INTERVAL_S = 10.0
_COUNTERS = ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "num_preemptions")


class IntervalSummary:
    """Compares the counters with those of the last line."""

    def __init__(self, metrics: EngineMetrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._time = clock()
        self._counts = self._read()

    @property
    def seconds_left(self) -> float:
        """Seconds until `log` is due."""
        return max(0.0, self._time + INTERVAL_S - self._clock())

    def log(self) -> None:
        """Log a line if the interval is over."""
        if self._clock() >= self._time + INTERVAL_S and (line := self.line()) is not None:
            LOGGER.info(line)

    def line(self) -> str | None:
        """The line for the time since the last call; None if nothing happened."""
        now, counts = self._clock(), self._read()
        seconds = max(now - self._time, 1e-9)
        since = {name: counts[name] - self._counts[name] for name in _COUNTERS}
        self._time, self._counts = now, counts
        metrics = self._metrics
        if not any(since.values()) and metrics.num_running + metrics.num_waiting == 0:
            return None
        parts = [
            f"prompt {since['prompt_tokens'] / seconds:,.1f} tok/s",
            f"generation {since['generation_tokens'] / seconds:,.1f} tok/s",
            f"running {metrics.num_running}",
            f"waiting {metrics.num_waiting}",
            f"KV {metrics.kv_cache_usage:.1%}",
        ]
        if since["prefix_cache_queries"]:
            parts.append(f"prefix hits {since['prefix_cache_hits'] / since['prefix_cache_queries']:.1%}")
        if since["num_preemptions"]:
            parts.append(f"preemptions {since['num_preemptions']:,.0f}")
        return ", ".join(parts)

    def _read(self) -> dict[str, float]:
        return {name: self._metrics.count(name) for name in _COUNTERS}
