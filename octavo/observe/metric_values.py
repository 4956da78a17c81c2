"""Metrics as Python values, for programs that run the engine themselves: what vLLM's `LLM.get_metrics` gives.

A counter's name lacks the _total that Prometheus's text adds; a histogram's buckets count up to their bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from octavo.observe.exposition import MetricFamily, Sample


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with one set of labels."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """What only grows."""

    value: float


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """What is so at the moment."""

    value: float


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """Observations. buckets: upper bound, as text -> how many were at most that."""

    count: int
    sum: float
    buckets: Mapping[str, int]


def metric_values(namespace: str, labels: Mapping[str, str], families: Iterable[MetricFamily]) -> list[Metric]:
    """labels: those that every metric has."""
    return [metric for family in families for metric in _of_family(f"{namespace}:{family.name}", labels, family)]


def _of_family(name: str, labels: Mapping[str, str], family: MetricFamily) -> Iterator[Metric]:
    if family.kind == "histogram":
        for own, samples in groupby(family.samples, key=_labels_but_bound):
            yield _histogram(name, {**labels, **dict(own)}, list(samples))
        return
    kind = Counter if family.kind == "counter" else Gauge
    for _, own_labels, value in family.samples:
        yield kind(name, {**labels, **dict(own_labels)}, value)


def _labels_but_bound(sample: Sample) -> tuple[tuple[str, str], ...]:
    return tuple(label for label in sample[1] if label[0] != "le")


def _histogram(name: str, labels: Mapping[str, str], samples: list[Sample]) -> Histogram:
    buckets = {dict(own)["le"]: int(value) for suffix, own, value in samples if suffix == "_bucket"}
    whole = {suffix: value for suffix, _, value in samples if suffix != "_bucket"}
    return Histogram(name, labels, int(whole["_count"]), whole["_sum"], buckets)
