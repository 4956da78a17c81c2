"""Drives a CompiledModel without scheduler, cache or engine: tokens in, logits out.

The simple block allocator still catches mistakes. Blocks come from a shuffled list, so no block table is in order. A
group of sliding-window layers frees blocks behind the window, as the engine does. The pool starts as NaN, so reading an
unwritten slot shows in the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from octavo.kernels.arrays import FloatArray
from octavo.kernels.device import Device, StepBatch, StepLimits
from octavo.kernels.kv_layout import KVDType, KVGroup, KVLayout
from octavo.models.architecture import Architecture
from octavo.models.decoder import LayerSlot
from octavo.models.registry import build_model
from octavo.models.weights import TensorSource

NAN_BYTE = 0xFF  # repeated, it is a NaN in float32, bfloat16 and float16


@dataclass(frozen=True, kw_only=True)
class DriverSetting:
    """A driver's sizes. slots: by default one cache group for all layers."""

    block_size: int = 16
    max_model_len: int = 256
    max_num_seqs: int = 8
    max_num_tokens: int = 512
    kv_dtype: KVDType = "float32"
    slots: Sequence[LayerSlot] | None = None
    seed: int = 0


@dataclass
class _Row:
    """One sequence: how many tokens it has in the cache, and its block table is row `index` of each group."""

    index: int
    num_computed: int = 0
    held: dict[tuple[int, int], int] = field(default_factory=dict)  # (group, place in the table) -> block id


class Driver:
    """Owns a pool, the block tables over it and the compiled model."""

    def __init__(
        self, device: Device, architecture: Architecture, source: TensorSource, setting: DriverSetting
    ) -> None:
        slots = setting.slots or [(0, i) for i in range(architecture.num_layers)]
        num_groups = 1 + max(group for group, _ in slots)
        table_len = -(-setting.max_model_len // setting.block_size)
        num_layers = 1 + max(index for _, index in slots)
        shape = architecture.num_kv_heads, architecture.head_dim, architecture.latent is not None
        layout = KVLayout(
            num_blocks=0,  # bound below
            block_size=setting.block_size,
            groups=(KVGroup(num_layers, *shape),) * num_groups,
            dtype=setting.kv_dtype,
        )
        limits = StepLimits(
            max_num_tokens=setting.max_num_tokens,
            max_num_seqs=setting.max_num_seqs,
            max_model_len=setting.max_model_len,
            vocab_size=architecture.vocab_size,
        )
        self._block_size = setting.block_size
        num_blocks = 1 + setting.max_num_seqs * table_len * num_groups
        model = build_model(architecture, source, slots, setting.max_model_len)
        self.compiled = device.load(model, layout, limits, "float32").bind(num_blocks)
        self.pool = self.compiled.pool
        self.pool.fill(NAN_BYTE)
        self._windows = _group_windows(architecture, slots, num_groups)
        self._tables = tuple(np.zeros((setting.max_num_seqs, table_len), np.int32) for _ in range(num_groups))
        self._free = np.random.default_rng(setting.seed).permutation(np.arange(1, num_blocks)).tolist()
        self._rows = [_Row(i) for i in range(setting.max_num_seqs)]

    def step(self, work: dict[int, Sequence[int]]) -> dict[int, FloatArray]:
        """Append tokens to rows; return each row's logits after each of its tokens."""
        for row, tokens in work.items():
            self._make_room(self._rows[row], len(tokens))
        starts = np.cumsum([0, *(len(tokens) for tokens in work.values())], dtype=np.int32)
        rows = np.array(list(work), np.int32)
        computed = np.array([self._rows[row].num_computed for row in work], np.int32)
        lens = np.diff(starts)
        self.compiled.forward(
            StepBatch(
                input_ids=np.concatenate([np.asarray(tokens, np.int32) for tokens in work.values()]),
                positions=np.arange(starts[-1], dtype=np.int32) + np.repeat(computed - starts[:-1], lens),
                query_start_loc=starts,
                seq_lens=computed + lens,
                rows=rows,
                block_tables=self._tables,
            )
        )
        for row, tokens in work.items():
            self._rows[row].num_computed += len(tokens)
        logits = self._logits(int(starts[-1]))
        return {row: logits[start:end] for row, start, end in zip(work, starts[:-1], starts[1:], strict=True)}

    def free(self, row: int) -> None:
        """Remove a row's sequence and free its blocks."""
        self._free.extend(self._rows[row].held.values())
        self._rows[row] = _Row(row)
        for table in self._tables:
            table[row] = 0

    def _logits(self, num_tokens: int) -> FloatArray:
        """A backend computes logits of max_num_seqs tokens at a time."""
        size = len(self._rows)
        indices = np.arange(num_tokens, dtype=np.int32)
        return np.concatenate([self.compiled.logits(indices[i : i + size]).copy() for i in range(0, num_tokens, size)])

    def _make_room(self, row: _Row, num_tokens: int) -> None:
        end = row.num_computed + num_tokens
        for group, window in enumerate(self._windows):
            first_seen = 0 if window is None else max(0, row.num_computed - window + 1)
            for place in range(-(-end // self._block_size)):
                live = (place + 1) * self._block_size > first_seen
                if live and (group, place) not in row.held:
                    row.held[group, place] = self._free.pop()
                elif not live and (group, place) in row.held:
                    self._free.append(row.held.pop((group, place)))
                self._tables[group][row.index, place] = row.held.get((group, place), 0)


def greedy(
    driver: Driver, prompts: Sequence[Sequence[int]], max_tokens: int, *, max_chunk: int | None = None, seed: int = 0
) -> tuple[list[list[int]], list[FloatArray]]:
    """Continue all prompts at once, each in one piece or in chunks of random length up to max_chunk.

    Returns each prompt's new tokens, and the logits after each of its tokens, prompt and new, but the last.
    """
    rng = np.random.default_rng(seed)
    tokens = [list(prompt) for prompt in prompts]
    logits: list[list[FloatArray]] = [[] for _ in prompts]
    done = [0] * len(prompts)
    while True:
        work: dict[int, Sequence[int]] = {}
        for row, (prompt, sequence) in enumerate(zip(prompts, tokens, strict=True)):
            if len(sequence) < len(prompt) + max_tokens:
                left = len(sequence) - done[row]
                chunk = left if max_chunk is None else int(rng.integers(1, min(left, max_chunk) + 1))
                work[row] = sequence[done[row] : done[row] + chunk]
        if not work:
            break
        for row, row_logits in driver.step(work).items():
            logits[row].append(row_logits)
            done[row] += len(row_logits)
            if done[row] == len(tokens[row]):
                tokens[row].append(int(row_logits[-1].argmax()))
    for row in range(len(prompts)):
        driver.free(row)
    new_tokens = [sequence[len(prompt) :] for prompt, sequence in zip(prompts, tokens, strict=True)]
    return new_tokens, [np.concatenate(parts) for parts in logits]


def _group_windows(architecture: Architecture, slots: Sequence[LayerSlot], num_groups: int) -> tuple[int | None, ...]:
    """Per group the widest window of its layers; None if one of them sees everything."""
    windows: list[list[int | None]] = [[] for _ in range(num_groups)]
    for layer, (group, _) in enumerate(slots):
        windows[group].append(architecture.windows[layer] if architecture.windows else None)
    return tuple(None if None in group else max(w for w in group if w is not None) for group in windows)
