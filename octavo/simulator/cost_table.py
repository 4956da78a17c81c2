"""The cost table that `octavo bench cost` writes: what steps of several shapes took, and what the host adds to them.

The file is JSON and also holds the engine's sizes, which a simulation starts from. `measured_cost.py` prices steps of
other shapes by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from octavo.errors import ConfigError

_MOST_BYTES = 16 << 20
_NUM_QUANTILES = 200

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
Ratio = Annotated[float, msgspec.Meta(ge=0.0, le=1e3)]


class DecodePoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`batch` sequences of `context` tokens decode one token each."""

    batch: Positive
    context: Positive
    seconds: Seconds


class MixedPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A chunk of `prefill` tokens from position `start` on, beside `decodes` sequences of `context` tokens."""

    prefill: Positive
    start: Count
    decodes: Count
    context: Count
    seconds: Seconds


class HostCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a host adds to a step before its device begins: seconds for each step, more for each of its sequences, and
    if it has chunks, for launching them and for each of their tokens. beside_s: what it then takes for chunks while the
    device computes them. latency_s: how much later a step's tokens are known than its device could begin the next."""

    step_s: Seconds
    seq_s: Seconds
    token_s: Seconds = 0.0
    launch_s: Seconds = 0.0
    beside_s: Seconds = 0.0
    latency_s: Seconds = 0.0


class EngineSizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine that was measured. num_blocks: with the null block. windows: of its cache groups."""

    num_blocks: Annotated[int, msgspec.Meta(ge=2, le=2**31 - 1)]
    block_size: Positive
    block_bytes: Annotated[int, msgspec.Meta(ge=1)]
    windows: Annotated[list[Positive | None], msgspec.Meta(min_length=1, max_length=64)]
    max_model_len: Positive
    max_num_seqs: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    max_num_batched_tokens: Positive
    is_asynchronous: bool


class CostTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """spread: quantiles of a step's seconds over the median of its point; none: steps of one shape are alike."""

    model: str
    date: str
    machine: dict[str, str]
    engine: EngineSizes
    host: HostCost
    decode: Annotated[list[DecodePoint], msgspec.Meta(min_length=1, max_length=10_000)]
    mixed: Annotated[list[MixedPoint], msgspec.Meta(min_length=1, max_length=10_000)]
    format: Literal["octavo cost table 2"] = "octavo cost table 2"
    spread: Annotated[list[Ratio], msgspec.Meta(max_length=1000)] = []

    def write(self, path: str) -> None:
        try:
            Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error}") from None


def read_cost_table(path: str) -> CostTable:
    """Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the cost table {path} cannot be read: {error}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"the cost table {path} has more than {_MOST_BYTES:,} bytes, the most that are read")
    try:
        return msgspec.json.decode(content, type=CostTable)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a cost table that `octavo bench cost` wrote: {error}") from None


def spread_of(ratios: Sequence[float]) -> list[float]:
    """Their quantiles, enough for a tail."""
    ordered = sorted(ratios)
    return (
        [min(ordered[place * len(ordered) // _NUM_QUANTILES], 1e3) for place in range(_NUM_QUANTILES)]
        if ordered
        else []
    )
