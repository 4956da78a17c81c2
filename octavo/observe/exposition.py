"""Metrics as Prometheus text (format 0.0.4), and as Python values like those of vLLM's `LLM.get_metrics`.

prometheus_client builds an object for every sample: 9 ms for a thousand lines, in which a fast engine generates nine
tokens. `TextWriter` writes the start of every line once and keeps it; a scrape only adds the numbers. Tests read the
text with prometheus_client's own parser.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels, float]  # suffix of the name, labels other than the common ones, value


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """One metric. `name` is without namespace, and without a counter's _total."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    samples: list[Sample]


class TextWriter:
    """Writes families. labels: those of every sample."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels: Labels = tuple(labels.items())
        self._starts: dict[tuple[str, str, str, Labels], str] = {}
        self._heads: dict[tuple[str, str], str] = {}

    def write(self, namespace: str, families: Iterable[MetricFamily]) -> str:
        parts: list[str] = []
        for family in families:
            name = family.name
            parts.append(self._heads.get((namespace, name)) or self._head(namespace, family))
            for suffix, labels, value in family.samples:
                start = self._starts.get((namespace, name, suffix, labels)) or self._start(
                    namespace, name, suffix, labels
                )
                parts.append(f"{start}{value}\n")
        return "".join(parts)

    def _head(self, namespace: str, family: MetricFamily) -> str:
        name = f"{namespace}:{family.name}{'_total' if family.kind == 'counter' else ''}"
        meaning = family.meaning.replace("\\", r"\\").replace("\n", r"\n")
        head = f"# HELP {name} {meaning}\n# TYPE {name} {family.kind}\n"
        self._heads[namespace, family.name] = head
        return head

    def _start(self, namespace: str, name: str, suffix: str, labels: Labels) -> str:
        pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in self._labels + labels)
        start = f"{namespace}:{name}{suffix}{{{pairs}}} "
        self._starts[namespace, name, suffix, labels] = start
        return start


def joined(texts: Sequence[bytes]) -> bytes:
    """The expositions of several engines as one: each metric's samples together, as Prometheus wants them. The engines'
    labels must differ."""
    if len(texts) == 1:
        return texts[0]
    heads: dict[bytes, list[bytes]] = {}  # HELP and TYPE -> samples
    for text in texts:
        for family in text.split(b"# HELP ")[1:]:
            help_line, type_line, samples = family.split(b"\n", 2)
            heads.setdefault(b"# HELP %s\n%s\n" % (help_line, type_line), []).append(samples)
    return b"".join([head + b"".join(samples) for head, samples in heads.items()])


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with one set of labels."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """A value that only grows."""

    value: float


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """A momentary value."""

    value: float


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """Observations. buckets: upper bound as text -> observations up to it."""

    count: int
    sum: float
    buckets: Mapping[str, int]


class Metrics(Protocol):
    """The metrics of one engine or of several. values: as Python values. exposition: as Prometheus text."""

    def values(self) -> list[Metric]: ...
    def exposition(self) -> bytes: ...


class EngineRecords(Metrics, Protocol):
    """What several engines record, each by itself. answers: those of the engines that serve, by their numbers, to one
    of the questions of their loops (processes/engine_loop.py)."""

    def answers(self, about: str) -> dict[int, bytes]: ...


def metric_values(namespace: str, labels: Mapping[str, str], families: Iterable[MetricFamily]) -> list[Metric]:
    """All metrics as Python values. labels: those of every metric."""
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
