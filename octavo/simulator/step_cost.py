"""What a step costs: its shape, and costs that are described by a few numbers.

    decodes      sequences that compute one token           context       KV tokens that they read, over all of them
    chunks       sequences that compute more                prefill       tokens of all chunks
                                                            prefill_work  token pairs that the chunks' attention visits

A cost turns a shape into seconds of the device. `cost_table.py` has the cost that was measured. A host's seconds, for
planning a step and taking its result, are counted beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from octavo.errors import ConfigError
from octavo.messages import StepPlan
from octavo.shown import shown

MOST_SECONDS = 1e6  # of any single number: eleven days


class StepShape(NamedTuple):
    decodes: int
    context: int
    prefill: int = 0
    prefill_work: float = 0.0
    chunks: int = 0


class StepCost(Protocol):
    """latency_s: how much later a step's tokens are known than its device could begin the next one. host_seconds:
    before the device begins; beside_seconds: what the host then goes on with, while the device computes."""

    @property
    def latency_s(self) -> float: ...

    def device_seconds(self, shape: StepShape) -> float: ...

    def host_seconds(self, shape: StepShape) -> float: ...

    def beside_seconds(self, shape: StepShape) -> float: ...


def shape_of(plan: StepPlan) -> StepShape:
    """The shape of a step that computes something. Columns are summed in C: most steps are decodes alone."""
    computed, granted = plan.num_computed_tokens, plan.num_scheduled_tokens
    num_seqs, num_tokens = len(granted), sum(granted)
    if num_tokens == num_seqs:
        return StepShape(num_seqs, sum(computed) + num_seqs)
    chunks = [(start, number) for start, number in zip(computed, granted, strict=True) if number > 1]
    decodes = num_seqs - len(chunks)
    return StepShape(
        decodes,
        sum(computed) - sum([start for start, _ in chunks]) + decodes,
        num_tokens - decodes,
        sum([number * (start + (number + 1) / 2) for start, number in chunks]),
        len(chunks),
    )


@dataclass(frozen=True, slots=True)
class DescribedCost:
    """seconds = step + token * tokens + context * KV tokens read by decodes + pair * token pairs of chunks, and the
    host's step_host + seq_host * sequences."""

    step_ms: float = 0.0
    token_us: float = 0.0
    context_ns: float = 0.0
    pair_ns: float = 0.0
    host_step_ms: float = 0.0
    host_seq_us: float = 0.0

    def device_seconds(self, shape: StepShape) -> float:
        return (
            self.step_ms * 1e-3
            + self.token_us * 1e-6 * (shape.decodes + shape.prefill)
            + self.context_ns * 1e-9 * shape.context
            + self.pair_ns * 1e-9 * shape.prefill_work
        )

    @property
    def latency_s(self) -> float:
        return 0.0

    def host_seconds(self, shape: StepShape) -> float:
        return self.host_step_ms * 1e-3 + self.host_seq_us * 1e-6 * (shape.decodes + shape.chunks)

    def beside_seconds(self, shape: StepShape) -> float:
        return 0.0


def described_cost(text: str) -> DescribedCost:
    """step_ms=6,token_us=20,context_ns=40. Raises ConfigError."""
    names = ", ".join(DescribedCost.__dataclass_fields__)
    found: dict[str, float] = {}
    for one in text.split(","):
        name, equals, value = one.partition("=")
        if not equals or name not in DescribedCost.__dataclass_fields__:
            raise ConfigError(
                f"cost has {shown(one)}, allowed are a file that `octavo bench cost` wrote, and NAME=NUMBER joined by "
                f"commas, of {names}"
            )
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not 0 <= found[name] <= MOST_SECONDS:
            raise ConfigError(f"cost has {name}={shown(value)}, allowed are numbers from 0 to {MOST_SECONDS:g}")
    if not found.get("step_ms") and not found.get("token_us"):
        raise ConfigError(f"cost is {shown(text)}, but steps that take no time show nothing: give step_ms or token_us")
    return DescribedCost(**found)
