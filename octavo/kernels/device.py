"""Device: where a model computes, in three steps from a model to one that runs.

    device.load(model, ...)  ->  Loaded          weights on the device, no KV blocks yet
    device.ledger(...)       ->  what all of it takes, planned
    device.free_bytes(...)   ->  bytes left for KV blocks: before `load` on a host, after it on a GPU
    loaded.bind(num_blocks)  ->  CompiledModel   steps can run

`registry.py` lists the devices, and the engine uses each through this interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from octavo.config import DTypeOption, KVCacheDType
from octavo.kernels.adapters import AdapterSource
from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.block_mover import BlockMover
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.ledger import Ledger, Measured
from octavo.kernels.model import Model
from octavo.kernels.program.model_recording import ModelRecording
from octavo.sampling.columns import SamplingBatch

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives
    from octavo.distributed.placed_experts import PlacedExperts

Logits = Any  # [N, V], a backend's own: a FloatArray on the host, a tensor on a device


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The sizes of a step if the options leave them to the device."""

    max_num_batched_tokens: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class DTypes:
    """compute: what the device computes in; kv: the element type of KV blocks."""

    compute: KVDType
    kv: KVDType


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The limits of a step; backends size their buffers by them. short_chunk: sequences of up to this many new tokens
    may be decodes, in a step in which none has more."""

    max_num_tokens: int
    max_num_seqs: int
    max_model_len: int
    vocab_size: int
    short_chunk: int = 16


#: allowed values of `decode_threshold`: each has its own kernels
DECODE_THRESHOLDS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """One step's batch tensors.

    Sequence s of the step lives in permanent row `rows[s]`; its block table for group g is
    `block_tables[g][rows[s]]` ([max_rows, max_blocks] int32), so nothing is gathered.

    decode_threshold: a sequence with at most this many new tokens is a decode; a longer one is a chunk.
    One of DECODE_THRESHOLDS. A hint: it changes no result.

    hidden_states: [T, H] from the stage before, for a model that takes them. token_types: [T] which of a pair's texts
    each token is of, for a model that looks them up. adapters: [T] the slot of each token's adapter, or -1; None: no
    token has one.
    """

    input_ids: IntArray  # [T]
    positions: IntArray  # [T]
    query_start_loc: IntArray  # [S + 1]
    seq_lens: IntArray  # [S], tokens of the sequence after this step
    rows: IntArray  # [S]
    block_tables: tuple[IntArray, ...]  # G of [max_rows, max_blocks]
    decode_threshold: int = 1
    hidden_states: FloatArray | None = None
    token_types: IntArray | None = None
    adapters: IntArray | None = None


class CompiledModel(Protocol):
    """A model bound to a backend, a KV pool and step limits. One owner: the runner."""

    def forward(self, batch: StepBatch) -> None:
        """Run the step up to the last layer's attention. The hidden states stay inside until the next forward."""

    def calibrate(self, batch: StepBatch) -> None:
        """Run the step, and set the scales of an 8-bit KV cache by its keys and values."""

    def logits(self, token_indices: IntArray) -> Logits:
        """Logits [N, V], or what else the model's head gives, for N tokens of the last forward, by their index in the
        step; N is at most max_num_seqs, and max_num_tokens for hidden states.
        Valid until the next call; it may be called any number of times."""

    def sample(self, logits: Logits, batch: SamplingBatch) -> IntArray:
        """Draw N tokens -> [N] int32. `logits` is not changed. An entry gets -1 if its logits have a NaN or all its
        tokens are banned: only that request fails."""

    def host_logits(self, logits: Logits, rows: IntArray) -> FloatArray:
        """A copy of these rows of logits on the host, as float32."""

    def processed_logits(self, logits: Logits, batch: SamplingBatch, drawn: IntArray) -> Logits:
        """The logits [N, V] float32 that `sample` drew from: edited, divided by the temperature if there is one, and
        -inf where a token cannot be drawn. A token of `drawn` is never -inf. `logits` is not changed. Rows of entries
        that drew no token (-1) are undefined."""

    def top_logprobs(
        self, logits: Logits, tokens: IntArray, k: int, *, as_logits: bool = False
    ) -> tuple[IntArray, FloatArray, IntArray]:
        """Log-softmax of logits [N, V], or with as_logits the logits. Each row has the chosen token, then the k best:
        ids [N, k+1], logprobs [N, k+1], ranks of the chosen tokens [N] (1 = best)."""

    def copy_blocks(self, source: IntArray, target: IntArray) -> None:
        """Copy whole blocks of the pool, in order."""

    def prepare_adapter(self, source: AdapterSource) -> Any:
        """An adapter's numbers in the form that slots have. Any thread may call it, while steps run."""

    def place_adapter(self, slot: int, prepared: Any) -> None:
        """Give a slot an adapter that was prepared, for the steps from now on."""

    def mover(self) -> BlockMover:
        """What moves blocks between the pool and the host."""


class Loaded(Protocol):
    """A model whose weights are on a device."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Each parameter on the device, by its name in the checkpoint: a tensor, a view of a stacked matrix, or a
        position in one."""

    @property
    def placed(self) -> PlacedExperts | None:
        """The experts that change places between ranks; None: all stay where they are."""

    def held(self) -> Measured:
        """Bytes that it has allocated, beside KV blocks."""

    def bind(self, num_blocks: int) -> Any:
        """Allocate the KV pool -> the CompiledModel. Raises OutOfMemoryError."""


class KernelCompiler(Protocol):
    """Compiles kernels before the first step needs them."""

    def rehearsal(self) -> AbstractContextManager[None]:
        """Inside this context steps compile their kernels and compute nothing."""

    def remember(self) -> None:
        """Record that everything is compiled, so that later starts need no compiler."""

    def close(self) -> None:
        """Stop compiling."""


class Device(Protocol):
    """is_asynchronous: a step runs while the host does other work, and its tokens are fetched later.
    draws_weights: random weights (load_format=dummy) are drawn on the device. sizes_cache_last: KV blocks get the
    memory that the weights leave, so their number is known after `load`; otherwise it is known before, and the model
    is built for the context that the blocks hold. num_sharing: ranks that share the device's memory."""

    name: str
    is_asynchronous: bool
    draws_weights: bool
    sizes_cache_last: bool
    num_sharing: int

    def why_not(self) -> str | None:
        """None if the device can be used here, else the reason and the fix, in one sentence."""

    def default_sizes(self) -> StepSizes: ...

    def dtypes(self, asked: DTypeOption, kv_asked: KVCacheDType, stored: str) -> DTypes:
        """The types for a model whose file stores `stored`. Raises ConfigError."""

    def label(self, dtype: KVDType) -> str | None:
        """The device's line on the start-up card; None if the backend's name is enough."""

    def compile_ahead(self, settings: object) -> KernelCompiler | None:
        """Start compiling kernels, if there are any. Call it before `why_not`, which takes longer. settings: they
        decide which kernels are needed; equal settings have equal `repr`s."""

    def ledger(self, model: ModelRecording, kv: KVLayout, limits: StepLimits, dtype: KVDType) -> Ledger:
        """What `load` and a runner will allocate, beside KV blocks. Needs no device."""

    def move_bytes(self, kv: KVLayout) -> int:
        """What a mover of KV blocks allocates."""

    def planned_bytes(self, ledger: Ledger, utilization: float, memory: int | None) -> int:
        """`free_bytes` as it will be with this ledger. memory: the device's, if it is not the one here."""

    def free_bytes(self, ledger: Ledger, utilization: float) -> int:
        """Memory left for KV blocks. utilization: the usable share of a device's own memory."""

    @property
    def place(self) -> str:
        """Where it computes, for people: cuda:1."""

    @property
    def collective_device(self) -> str | None:
        """torch's name for the device on which ranks add up their results; None: on the host."""

    @property
    def kind(self) -> str:
        """What the devices of a model's ranks must have alike, for people; empty if there is nothing."""

    def used_bytes(self) -> int | None:
        """All memory in use on a device with its own; None on the host."""

    def load(
        self, model: Model, kv: KVLayout, limits: StepLimits, dtype: KVDType, ranks: Collectives | None = None
    ) -> Loaded:
        """Load the weights and allocate all buffers for steps within the limits, except the KV pool, whose size may
        not be known yet (kv.num_blocks is ignored). ranks: of which the model is a part; None: it is whole. Raises
        OutOfMemoryError, ConfigError and UnsupportedModelError."""


def row_shapes(max_num_seqs: int, max_model_len: int, block_size: int, num_groups: int) -> dict[str, tuple[int, ...]]:
    """Of a worker's permanent rows, in 32-bit integers."""
    num_blocks = -(-max_model_len // block_size) + 1
    return {
        "token_ids": (max_num_seqs, max_model_len + 1),
        "block_tables": (num_groups, max_num_seqs, num_blocks),
    }
