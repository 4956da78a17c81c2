"""A batch of draws on the device: its entries, read word by word in kernels, and its ragged columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from octavo.sampling.columns import ENTRY_WIDTH, RAGGED, WORDS, SamplingBatch, batch_entries

_RUNS = tuple(dict.fromkeys([*RAGGED, *RAGGED.values()]))
_WIDTH = tl.constexpr(ENTRY_WIDTH)

LOGITS_ROW = tl.constexpr(WORDS["logits_rows"])
POSITION = tl.constexpr(WORDS["positions"])
SEED = tl.constexpr(WORDS["seeds"])
SAMPLE_INDEX = tl.constexpr(WORDS["sample_indices"])
TEMPERATURE = tl.constexpr(WORDS["temperature"])
IS_EDITED = tl.constexpr(WORDS["is_edited"])


@dataclass(frozen=True, slots=True, eq=False)
class DeviceSamplingBatch:
    """`SamplingBatch` on the device."""

    entries: torch.Tensor  # [N, ENTRY_WIDTH] int32
    runs: Mapping[str, torch.Tensor]  # ragged columns: values, and offsets [N + 1]

    @classmethod
    def of(
        cls, batch: SamplingBatch, upload: Callable[[Sequence[NDArray[Any]]], list[torch.Tensor]]
    ) -> DeviceSamplingBatch:
        entries, *runs = upload([batch_entries(batch), *(getattr(batch, name) for name in _RUNS)])
        return cls(entries, dict(zip(_RUNS, runs, strict=True)))

    @classmethod
    def zeros(cls, num_entries: int, device: torch.device) -> DeviceSamplingBatch:
        """Room for entries without edits."""
        offsets = torch.zeros(num_entries + 1, dtype=torch.int32, device=device)
        entries = torch.zeros((num_entries, ENTRY_WIDTH), dtype=torch.int32, device=device)
        return cls(entries, dict.fromkeys(_RUNS, offsets))

    def part(self, start: int, end: int) -> DeviceSamplingBatch:
        """Entries start .. end-1, or to the last. Values stay whole: offsets point into them."""
        cut = {name: self.runs[name][start : end + 1] for name in RAGGED.values()}
        return DeviceSamplingBatch(self.entries[start:end], {**self.runs, **cut})


def with_constants(function: Any) -> Any:
    """Wraps a function that reads constants. Triton omits the constants from a kernel's hash if the kernel is hashed
    before the function: another process, hashing in another order, would not find what this one compiled."""
    jitted = triton.jit(function)
    getattr(jitted, "cache_key", None)  # reading computes it; interpreted functions have none
    return jitted


@with_constants
def load_int(entries, i, WORD: tl.constexpr):
    return tl.load(entries + i * _WIDTH + WORD)


@with_constants
def load_float(entries, i, WORD: tl.constexpr):
    return tl.load(entries + i * _WIDTH + WORD).to(tl.float32, bitcast=True)


@with_constants
def load_seed(entries, i):
    low = load_int(entries, i, SEED).to(tl.int64) & 0xFFFFFFFF
    high = tl.load(entries + i * _WIDTH + SEED + 1).to(tl.int64) << 32
    return (high | low).to(tl.uint64, bitcast=True)


@with_constants
def uniform(entries, i):
    """u in [0, 1) for entry i, see `kernels/reference/random.py`."""
    position = load_int(entries, i, POSITION).to(tl.uint32, bitcast=True)
    index = load_int(entries, i, SAMPLE_INDEX).to(tl.uint32, bitcast=True)
    zero = position * 0
    a, b, _c, _d = tl.philox(load_seed(entries, i), position, index, zero, zero)
    return ((a >> 5).to(tl.float64) * 67108864.0 + (b >> 6).to(tl.float64)) * 1.1102230246251565e-16
