"""CpuModel: a recorded model, bound to a KV pool; each step is one call into C++."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from ctypes import byref, c_int64, c_void_p
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.adapters import AdapterSource
from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.block_mover import HostMover
from octavo.kernels.cpu import library
from octavo.kernels.cpu.adapters import PreparedAdapter
from octavo.kernels.cpu.all_reduce import AllReduce
from octavo.kernels.cpu.library import ThreadPool, address, check, int32_address, processed_logits, sample
from octavo.kernels.cpu.program import CpuProgram, slots
from octavo.kernels.cpu.weights import CpuWeights, PackedRows
from octavo.kernels.device import StepBatch, StepLimits
from octavo.kernels.host_device import allocate_pool
from octavo.kernels.kv_layout import KVDType, KVLayout, calibrated_code
from octavo.kernels.ledger import Contents, Measured
from octavo.kernels.model import Model
from octavo.kernels.placed_experts import placed_experts
from octavo.kernels.program.recorder import See, record_model
from octavo.kernels.tensor import HostTensor
from octavo.sampling.columns import SamplingBatch

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives

#: the C++ enums' order
KV_DTYPES: tuple[KVDType, ...] = get_args(KVDType)


@dataclass(frozen=True, slots=True)
class OpTime:
    """Time spent in one kind of op since measuring began."""

    op: str
    calls: int
    seconds: float


class CpuModel:
    """Implements `Loaded` of `octavo/kernels/device.py` and, once it is bound, `CompiledModel`. Owns its C++ model,
    packed weights, activations and KV pool."""

    def __init__(
        self,
        loaded: ctypes.CDLL,
        threads: ThreadPool,
        model: Model,
        kv: KVLayout,
        limits: StepLimits,
        activation_bytes: int,
        see: See | None,
        ranks: Collectives | None = None,
    ) -> None:
        self._library = loaded
        self._threads = threads
        self._limits = limits
        self._is_traced = see is not None
        self._kv = kv
        self.pool: NDArray[np.uint8] = np.empty(0, np.uint8)
        body, heads = record_model(model)
        self.placed = placed_experts(Contents.of((body, *heads.values())).mixtures.values())
        self._weights = CpuWeights(self.placed)
        self._adapters: IntArray | None = None
        self._logits = np.empty(0, np.float32)
        layout = library.KVPool(None, 0, kv.block_size, kv.block_bytes, KV_DTYPES.index(kv.dtype))
        self._handle = c_void_p(loaded.octavo_model_new(threads.handle, byref(layout)))
        self._check: Callable[[int, str], None] = partial(check, loaded)
        if ranks is not None:
            self._check = AllReduce(loaded, self._handle, ranks).check
        (head,) = heads.values()
        self._check_layers(body.layers)
        self._hidden_width = sum(value.width for value in body.given)  # of the stage before; 0: there is none
        (logits,) = head.kept
        assert logits.width == logits.stride, "a row of logits is followed by the next"
        self._num_logits = logits.width  # a rank's part of the vocabulary
        given = (kv, self._weights, activation_bytes, see)
        self._forward = CpuProgram(loaded, threads, self._handle, "forward", body, *given)
        self._head = CpuProgram(loaded, threads, self._handle, "head", head, *given)
        (logits_slot,) = slots(self._head.plan, head.kept)
        self._logits_floats = self._head.plan.widths[logits_slot.buffer]
        hidden, head_inputs = slots(self._forward.plan, body.kept), slots(self._head.plan, head.given)
        if body.given:
            loaded.octavo_model_take_hidden(self._handle, *slots(self._forward.plan, body.given))
        if self.placed is not None and ranks is not None:
            self.placed.join(ranks, Path(loaded._name).parent.name)  # a hash of code, compiler and processor
        loaded.octavo_model_join(self._handle, hidden, head_inputs, len(hidden), logits_slot)

    def _check_layers(self, layers: list[AttentionLayer]) -> None:
        for layer in layers:
            self._kv.check(layer)
            assert layer.rotary is None or len(layer.rotary.cos) >= self._limits.max_model_len, (
                f"rotary angles end at {len(layer.rotary.cos)}, sequences at {self._limits.max_model_len}"
            )

    def bind(self, num_blocks: int) -> CpuModel:
        self._kv = replace(self._kv, num_blocks=num_blocks)
        self.pool = allocate_pool(self._kv)
        self._library.octavo_model_bind(self._handle, address(self.pool), num_blocks)
        return self

    @property
    def parameters(self) -> Mapping[str, HostTensor | PackedRows]:
        return MappingProxyType(self._weights.parameters)

    @property
    def packed_bytes(self) -> int:
        """Bytes of packed weights."""
        return int(self._library.octavo_model_packed_bytes(self._handle))

    def held(self) -> Measured:
        """Activations and workspace grow with the largest step so far."""
        buffers, scratch = c_int64(), c_int64()
        self._library.octavo_model_step_bytes(self._handle, byref(buffers), byref(scratch))
        return {
            "weights": self.packed_bytes + self._weights.num_bytes,
            "activations": buffers.value + self._logits.nbytes,
            "workspace": scratch.value + (0 if self.placed is None else self.placed.num_bytes),
        }

    def forward(self, batch: StepBatch) -> None:
        num_tokens, num_seqs, num_groups = len(batch.input_ids), len(batch.seq_lens), len(batch.block_tables)
        assert num_tokens <= self._limits.max_num_tokens, "a step holds max_num_tokens tokens at most"
        assert num_seqs <= self._limits.max_num_seqs, "a step holds max_num_seqs sequences at most"
        step = library.StepView(
            *(num_tokens, num_seqs, num_groups, int32_address(batch.input_ids), int32_address(batch.positions)),
            *(int32_address(batch.query_start_loc), int32_address(batch.seq_lens), int32_address(batch.rows)),
            (c_void_p * num_groups)(*(int32_address(table) for table in batch.block_tables)),
            (c_int64 * num_groups)(*(table.shape[1] for table in batch.block_tables)),
        )
        if batch.token_types is not None:
            step.token_types = int32_address(batch.token_types)
        if batch.adapters is not None:
            step.adapters = int32_address(batch.adapters)
            self._adapters = batch.adapters  # the head reads them, too
        if self._hidden_width:
            hidden_states = batch.hidden_states
            assert hidden_states is not None, "each step of a later stage brings hidden states"
            assert hidden_states.shape == (num_tokens, self._hidden_width), f"hidden states of {hidden_states.shape}"
            step.hidden_states = address(hidden_states)
        run = self._library.octavo_model_begin_forward if self._is_traced else self._library.octavo_model_forward
        self._check(run(self._handle, byref(step)), "running a step")
        if self._is_traced:
            self._forward.run_op_by_op(num_tokens)

    def calibrate(self, batch: StepBatch) -> None:
        self._library.octavo_model_calibrate(self._handle, calibrated_code(self._kv.dtype))
        self.forward(batch)
        self._library.octavo_model_calibrate(self._handle, 0.0)

    def logits(self, token_indices: IntArray) -> FloatArray:
        count, width = len(token_indices), self._num_logits
        if self._logits.size < count * self._logits_floats:
            self._logits = np.empty(count * self._logits_floats, np.float32)
        indices = int32_address(token_indices)
        run = self._library.octavo_model_begin_logits if self._is_traced else self._library.octavo_model_logits
        self._check(run(self._handle, indices, count, address(self._logits)), "computing logits")
        if self._is_traced:
            self._head.run_op_by_op(count)
        return self._logits[: count * width].reshape(count, width)

    def sample(self, logits: FloatArray, batch: SamplingBatch) -> IntArray:
        return sample(self._library, self._threads.handle, logits, batch)

    def host_logits(self, logits: FloatArray, rows: IntArray) -> FloatArray:
        copied: FloatArray = logits[rows].astype(np.float32)
        return copied

    def processed_logits(self, logits: FloatArray, batch: SamplingBatch, drawn: IntArray) -> FloatArray:
        return processed_logits(self._library, self._threads.handle, logits, batch)

    def top_logprobs(
        self, logits: FloatArray, tokens: IntArray, k: int, *, as_logits: bool = False
    ) -> tuple[IntArray, FloatArray, IntArray]:
        num_rows, vocab_size = logits.shape
        assert 0 <= k <= vocab_size, f"{k} best tokens of {vocab_size}"
        ids = np.empty((num_rows, k + 1), np.int32)
        logprobs = np.empty((num_rows, k + 1), np.float32)
        ranks = np.empty(num_rows, np.int32)
        code = self._library.octavo_top_logprobs(
            *(self._threads.handle, address(logits), num_rows, vocab_size, int32_address(tokens), k),
            *(int(as_logits), address(ids), address(logprobs), address(ranks)),
        )
        check(self._library, code, "ranking log-probabilities")
        return ids, logprobs, ranks

    def copy_blocks(self, source: IntArray, target: IntArray) -> None:
        assert len(source) == len(target), "one target block a source block"
        last_block = self._kv.num_blocks - 1
        for block_id in (*source.tolist(), *target.tolist()):
            assert 0 <= block_id <= last_block, f"block {block_id} of a pool whose last is {last_block}"
        self._library.octavo_model_copy_blocks(self._handle, int32_address(source), int32_address(target), len(source))

    def prepare_adapter(self, source: AdapterSource) -> PreparedAdapter:
        return self._weights.adapters.prepare(source)

    def place_adapter(self, slot: int, prepared: PreparedAdapter) -> None:
        self._weights.adapters.place(slot, prepared)

    def mover(self) -> HostMover:
        return HostMover("cpu", self.pool.reshape(self._kv.num_blocks, self._kv.block_bytes))

    def measure(self, on: bool) -> None:
        """Start timing every op from zero, or stop."""
        self._library.octavo_model_measure(self._handle, int(on))

    def op_times(self) -> list[OpTime]:
        """Time per kind of op since measuring began, slowest first."""
        total: dict[str, OpTime] = {}
        for op, calls, seconds in self._forward.times() + self._head.times():
            before = total.get(op, OpTime(op, 0, 0.0))
            total[op] = OpTime(op, before.calls + calls, before.seconds + seconds)
        return sorted((time for time in total.values() if time.calls), key=lambda time: -time.seconds)

    def __del__(self) -> None:
        if handle := self.__dict__.pop("_handle", None):
            self._library.octavo_model_free(handle)
