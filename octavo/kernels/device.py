"""Device: where a model computes, in three steps from a model to one that runs.

    device.load(model, ...)  ->  Loaded          the weights are there, but no KV blocks
    loaded.free_bytes(...)   ->  how much memory is left for blocks
    loaded.bind(num_blocks)  ->  CompiledModel   steps can run

`registry.py` lists the devices. What the engine needs to know of one it asks here, whatever device it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.config import DTypeOption, KVCacheDType
from octavo.kernels.ops import KVDType, KVLayout, Model, StepLimits


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The sizes of a step where the options leave them to the device."""

    max_num_batched_tokens: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class DTypes:
    """compute: what the device computes in; kv: the element type of KV blocks."""

    compute: KVDType
    kv: KVDType


class Loaded(Protocol):
    """A model whose weights are on a device."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the device holds of each parameter, by the checkpoint's names. The values are the device's own: tensors,
        views of a stacked matrix, or a place in one."""

    def free_bytes(self, utilization: float) -> int:
        """The memory that is left for KV blocks. utilization: the share of the device's memory that may be used,
        where the device has memory of its own."""

    def bind(self, num_blocks: int) -> Any:
        """Allocate the KV pool -> the CompiledModel. Raises OutOfMemoryError."""


class KernelCompiler(Protocol):
    """Compiles kernels before the first step needs them."""

    def rehearsal(self) -> AbstractContextManager[None]:
        """Steps within it compile their kernels and compute nothing."""

    def remember(self) -> None:
        """Everything is compiled: later starts need no compiler."""

    def close(self) -> None:
        """Stop compiling."""


class Device(Protocol):
    """is_asynchronous: a step runs on while the host does other work, and its tokens are fetched later.
    draws_weights: random weights (load_format=dummy) are drawn on the device."""

    name: str
    is_asynchronous: bool
    draws_weights: bool

    def why_not(self) -> str | None:
        """None if it can be used here, else the reason and the cure, in one sentence."""

    def default_sizes(self) -> StepSizes: ...

    def dtypes(self, asked: DTypeOption, kv_asked: KVCacheDType, stored: str) -> DTypes:
        """The types for a model whose file stores `stored`. Raises ConfigError."""

    def label(self, dtype: KVDType) -> str | None:
        """For the start-up card; None where the backend's name says it all."""

    def compile_ahead(self, settings: object) -> KernelCompiler | None:
        """Start to compile kernels, if there are any to compile: before `why_not`, which takes longer. settings: what
        decides which kernels are needed; equal settings have equal `repr`s."""

    def load(self, model: Model, kv: KVLayout, limits: StepLimits, dtype: KVDType) -> Loaded:
        """Put the weights on the device, and all that steps within the limits need but the KV pool, whose size is not
        known yet (kv.num_blocks is 0). Raises OutOfMemoryError, ConfigError and UnsupportedModelError."""
