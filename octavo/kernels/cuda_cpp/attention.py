"""CudaAttention: the attention backend with CUDA C++ kernels for decodes. Reads a block that sequences share once.

steps with one new token each, or chunks beside them     kernels for 1 query, plans that share
steps whose chunks are all short                         kernels for `short_chunk` queries, private plans
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import torch

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.step import AttentionLaunch, DeviceStep
from octavo.kernels.cuda_cpp.attention_plan import SharedPlan, compile_plan, plan_costs
from octavo.kernels.cuda_cpp.decode_attention import DecodeAttention, Kind, Partials
from octavo.kernels.cuda_cpp.one_sequence import OneSequence, compile_one, takes
from octavo.kernels.cuda_cpp.shape import MAX_SEQUENCES, Shape, short_chunk, why_not
from octavo.kernels.kv_layout import LARGEST_CODE, KVDType, KVLayout
from octavo.kernels.triton.attention.memory import TORCH_DTYPE, AttentionMemory
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform


class CudaAttention:
    """Implements `octavo.kernels.attention.AttentionBackend`. Leaves longer chunks, and all steps of an engine with
    more than MAX_SEQUENCES, to other backends."""

    decodes_in_parts: ClassVar[bool] = False  # it has partial results of its own
    scales_projections: ClassVar[bool] = True
    longest_captured: ClassVar[int | None] = None

    @staticmethod
    def why_not(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU) -> list[str]:
        return why_not(layer, dtype, kv, gpu)

    def __init__(self, memory: AttentionMemory) -> None:
        self._memory = memory
        self._decodes: dict[int, DecodesOf] = {}
        self.decodes_alone, self.short_chunk = False, 1
        if memory.max_num_seqs > MAX_SEQUENCES:
            return
        layers = [layer for layer in memory.layers if not self.why_not(layer, memory.dtype, memory.kv, memory.gpu)]
        self.decodes_alone = len(layers) == len(memory.layers)
        if self.decodes_alone:
            self.short_chunk = short_chunk(layers, memory.max_num_seqs, memory.short_chunk)
        queries = sorted({1, self.short_chunk})
        _compile([kind for most in queries for kind in _kinds(memory, layers, most)], layers, queries, memory)
        self._decodes = {most: DecodesOf(most, layers, memory) for most in queries}

    @property
    def num_bytes(self) -> int:
        return sum(decodes.num_bytes for decodes in self._decodes.values())

    def plan(self, step: DeviceStep) -> None:
        decodes = self._decodes.get(step.kind.decode_threshold)
        if decodes is not None and step.kind.has_decodes:
            decodes.plan(step)

    def decode(
        self, layer: AttentionLayer, transform: HeadTransform | None, otherwise: AttentionLaunch
    ) -> AttentionLaunch:
        if not self._decodes:
            return otherwise
        if transform is not None:  # only steps with one new token each
            return self._decodes[1].launch(layer, transform)
        launches = {most: decodes.launch(layer, None) for most, decodes in self._decodes.items()}
        return lambda step, q, out: launches.get(step.kind.decode_threshold, otherwise)(step, q, out)

    def prefill(self, layer: AttentionLayer, otherwise: AttentionLaunch) -> AttentionLaunch:
        return otherwise


class DecodesOf:
    """Kernels, plans and partial results for sequences of up to max_queries new tokens each."""

    def __init__(self, max_queries: int, layers: Sequence[AttentionLayer], memory: AttentionMemory) -> None:
        self._max_queries, self._memory = max_queries, memory
        gpu, device = memory.gpu, memory.device
        self._kernels = {kind: DecodeAttention(kind, gpu) for kind in _kinds(memory, layers, max_queries)}
        self._plans: dict[tuple[int, int | None, Shape], SharedPlan] = {}
        self._partials: dict[tuple[Shape, int], Partials] = {}
        self._alone = OneSequence.of_kinds(self._kernels, gpu, device)
        for layer in layers:
            shape = Shape.of(layer, max_queries)
            key, dim, seqs = (layer.group, layer.window, shape), layer.head_dim, memory.max_num_seqs
            if key not in self._plans:
                has_codes = memory.kv.dtype in LARGEST_CODE
                stretches = shape.num_stretches(gpu, dim, has_codes=has_codes)
                # partial results of short chunks, which have many rows, would take hundreds of megabytes if they shared
                self._plans[key] = SharedPlan(
                    shape, seqs, stretches, gpu, device, shares=max_queries == 1, has_codes=has_codes
                )
            if (shape, dim) not in self._partials:
                rows = self._plans[key].max_part_rows()
                self._partials[shape, dim] = Partials.allocate(rows, seqs, shape, dim, device)

    @property
    def num_bytes(self) -> int:
        arrays = [array for plan in self._plans.values() for array in plan.arrays]
        for part in self._partials.values():
            arrays += [part.values, part.max_sum, part.done]
        alone = {one.parts for one in self._alone.values()}
        return sum(array.nbytes for array in arrays) + sum(parts.num_bytes for parts in alone)

    def plan(self, step: DeviceStep) -> None:
        for (group, window, _), plan in self._plans.items():
            plan.make(
                query_start_loc=step.query_start_loc, seq_lens=step.seq_lens, rows=step.rows,
                block_table=step.block_tables[group], block_size=self._memory.kv.block_size, window=window,
                chained=self._memory.gpu.chains,
            )  # fmt: skip

    def launch(self, layer: AttentionLayer, transform: HeadTransform | None) -> AttentionLaunch:
        memory, shape = self._memory, Shape.of(layer, self._max_queries)
        kind = Kind.of(layer, TORCH_DTYPE[memory.dtype], memory.kv, transform is not None, self._max_queries)
        kernel, partials = self._kernels[kind], self._partials[shape, layer.head_dim]
        plan, pools = self._plans[layer.group, layer.window, shape], memory.pools
        alone = self._alone.get(kind) if transform is not None and transform.row_scales is None else None

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            if alone is not None and transform is not None and len(step.seq_lens) == 1:
                return alone.run(q, out, layer, pools[layer], step, transform=transform)
            kernel.run(
                q, out, layer, pools[layer], plan, partials, block_table=step.block_tables[layer.group],
                transform=transform,
            )  # fmt: skip

        return launch


def _kinds(memory: AttentionMemory, layers: Sequence[AttentionLayer], max_queries: int) -> list[Kind]:
    """Steps of several new tokens are not fused."""
    dtype, fused = TORCH_DTYPE[memory.dtype], (True, False) if max_queries == 1 else (False,)
    return [*dict.fromkeys(Kind.of(layer, dtype, memory.kv, one, max_queries) for layer in layers for one in fused)]


def _compile(
    kinds: Sequence[Kind], layers: Sequence[AttentionLayer], queries: Sequence[int], memory: AttentionMemory
) -> None:
    """All at once, so that the objects made after it find them. Threads suffice: each nvcc is a process."""
    seqs = {memory.max_num_seqs * Shape.of(layer, most).query_tiles for layer in layers for most in queries}
    with ThreadPoolExecutor() as pool:
        costs = plan_costs(memory.gpu, has_codes=memory.kv.dtype in LARGEST_CODE)
        plans = [pool.submit(compile_plan, num, memory.gpu, costs) for num in seqs]
        alone = [pool.submit(compile_one, kind, memory.gpu) for kind in kinds if takes(kind, memory.gpu)]
        list(pool.map(lambda kind: kind.compile(memory.gpu), kinds))
        for plan in plans:
            plan.result()
        for one in alone:
            one.result()
