"""Runs a few ops as if they were a model, on any backend, over steps that are spelt out.

A test, or `octavo kernels test`, writes a function over `Ops`; its result becomes the "logits", so the whole tensor can
be read. Tokens are looked up in a random table, so any token id is a random row. The pool starts as NaN, so that
reading an unwritten slot or the null block shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.kernels.adapters import AdapterSource
from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.device import Device, StepBatch, StepLimits
from octavo.kernels.kv_layout import KVDType, KVGroup, KVLayout
from octavo.kernels.model import TOKEN_IDS, Head
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Parameter
from octavo.testing.made_parameters import parameter

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives

NUM_ROWS = 97  # of the lookup table
MAX_SEQS = 8
MAX_TOKENS = 1024


def random_table(width: int, seed: int = 0) -> Parameter:
    return parameter(np.random.default_rng(seed).standard_normal((NUM_ROWS, width), np.float32))


@dataclass(frozen=True)
class FunctionModel:
    """A model whose forward pass is one function; its logits are the function's result."""

    function: Callable[[Ops], Tensor]
    inputs = TOKEN_IDS

    @property
    def heads(self) -> dict[str, Head]:
        return {"logits": self.logits}

    def body(self, ops: Ops) -> tuple[Tensor]:
        return (self.function(ops),)

    def logits(self, ops: Ops, hidden: Tensor) -> Tensor:
        return hidden


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The KV pool's shape, for one cache group. beside: the other groups."""

    block_size: int = 16
    num_layers: int = 1
    num_kv_heads: int = 1
    head_dim: int = 8
    is_latent: bool = False
    dtype: KVDType = "float32"
    max_len: int = 768
    beside: tuple[KVGroup, ...] = ()


class Harness:
    """Sequences by row number, and a compiled function to run their tokens through."""

    def __init__(
        self,
        device: Device,
        function: Callable[[Ops], Tensor],
        width: int,
        pool: Pool | None = None,
        window: int | None = None,
        dtype: KVDType = "float32",
        ranks: Collectives | None = None,
        adapters: Sequence[AdapterSource] = (),
    ) -> None:
        """adapters: of the slots; row 0 has none, and the rows after it those of the slots in turn."""
        pool = pool or Pool()
        table_len = -(-pool.max_len // pool.block_size)
        groups = (KVGroup(pool.num_layers, pool.num_kv_heads, pool.head_dim, pool.is_latent), *pool.beside)
        layout = KVLayout(0, pool.block_size, groups, pool.dtype)
        limits = StepLimits(MAX_TOKENS, MAX_SEQS, pool.max_len, width)
        num_blocks = 1 + MAX_SEQS * len(groups) * table_len
        self.compiled = device.load(FunctionModel(function), layout, limits, dtype, ranks).bind(num_blocks)
        for slot, source in enumerate(adapters):
            self.compiled.place_adapter(slot, self.compiled.prepare_adapter(source))
        self._num_adapters = len(adapters)
        if not device.is_asynchronous:
            self.pool = self.compiled.pool
            self.pool.fill(0xFF)
        order = np.random.default_rng(7).permutation(np.arange(1, num_blocks, dtype=np.int32))
        self._blocks = order.reshape(MAX_SEQS, len(groups), table_len)
        self._block_size = pool.block_size
        self._window = window
        self._lens = [0] * MAX_SEQS

    def step(self, work: Sequence[tuple[int, Sequence[int]]]) -> list[FloatArray]:
        """Append tokens to rows; returns the function's result for each row's tokens."""
        rows = [row for row, _ in work]
        lens = np.array([len(tokens) for _, tokens in work], np.int32)
        computed = np.array([self._lens[row] for row in rows], np.int32)
        starts = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
        self.compiled.forward(
            StepBatch(
                input_ids=np.concatenate([np.asarray(tokens, np.int32) for _, tokens in work]),
                positions=np.concatenate(
                    [np.arange(a, a + n, dtype=np.int32) for a, n in zip(computed, lens, strict=True)]
                ),
                query_start_loc=starts,
                seq_lens=computed + lens,
                rows=np.array(rows, np.int32),
                block_tables=self._tables(rows, computed, lens),
                adapters=self._slots(rows, lens),
            )
        )
        for row, tokens in work:
            self._lens[row] += len(tokens)
        indices = np.arange(starts[-1], dtype=np.int32)
        parts = [indices[first : first + MAX_SEQS] for first in range(0, len(indices), MAX_SEQS)]
        out = np.concatenate([_on_host(self.compiled.logits(part)) for part in parts])
        return [out[a:b] for a, b in pairwise(starts)]

    def _slots(self, rows: Sequence[int], lens: IntArray) -> IntArray | None:
        if not self._num_adapters:
            return None
        slots = np.array([row % (self._num_adapters + 1) - 1 for row in rows], np.int32)
        return np.repeat(slots, lens)

    def fork(self, row: int, target: int) -> None:
        """Copy a row and its blocks to another row."""
        used = -(-self._lens[row] // self._block_size)
        self.compiled.copy_blocks(self._blocks[row, :, :used].ravel(), self._blocks[target, :, :used].ravel())
        self._lens[target] = self._lens[row]

    def _tables(self, rows: Sequence[int], computed: IntArray, lens: IntArray) -> tuple[IntArray, ...]:
        """Tables with null blocks where the step must not read: past each sequence's end and before its window."""
        tables = np.zeros_like(self._blocks)
        for row, start, count in zip(rows, computed.tolist(), lens.tolist(), strict=True):
            first = 0 if self._window is None else max(0, start - self._window + 1) // self._block_size
            end = -(-(start + count) // self._block_size)
            tables[row, :, first:end] = self._blocks[row, :, first:end]
        return tuple(np.ascontiguousarray(tables[:, group]) for group in range(tables.shape[1]))


def _on_host(logits: Any) -> FloatArray:
    """A copy; a GPU's tensor is fetched."""
    return np.array(logits.float().cpu().numpy() if hasattr(logits, "cpu") else logits, np.float32)


def run_once(
    device: Device, function: Callable[[Ops], Tensor], width: int, num_tokens: int, pool: Pool | None = None
) -> FloatArray:
    """One step of one new sequence whose token ids count up."""
    return Harness(device, function, width, pool).step([(0, [i % NUM_ROWS for i in range(num_tokens)])])[0]
