"""CudaAttention: the attention backend with CUDA C++ kernels for decodes. Reads a block that sequences share once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.step import AttentionLaunch, DeviceStep
from octavo.kernels.cuda_cpp.attention_plan import SharedPlan, compile_plan
from octavo.kernels.cuda_cpp.decode_attention import DecodeAttention, Kind, Partials
from octavo.kernels.cuda_cpp.shape import MAX_SEQUENCES, Shape, why_not
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.ops import AttentionLayer
from octavo.kernels.triton.attention.memory import TORCH_DTYPE, AttentionMemory
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform


class CudaAttention:
    """Implements `octavo.kernels.attention.AttentionBackend`. Leaves prompt chunks, decodes with several new tokens,
    and all steps of an engine with more than MAX_SEQUENCES, to other backends."""

    decodes_in_parts: ClassVar[bool] = False  # it has partial results of its own
    longest_captured: ClassVar[int | None] = None

    @staticmethod
    def why_not(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU) -> list[str]:
        return why_not(layer, dtype, kv, gpu)

    def __init__(self, memory: AttentionMemory) -> None:
        self._memory, gpu, device = memory, memory.gpu, memory.device
        dtype, kv = TORCH_DTYPE[memory.dtype], memory.kv
        self._plans: dict[tuple[int, int | None, Shape], SharedPlan] = {}
        self._partials: dict[tuple[Shape, int], Partials] = {}
        self.decodes_alone = False
        if memory.max_num_seqs > MAX_SEQUENCES:
            return
        layers = [layer for layer in memory.layers if not self.why_not(layer, memory.dtype, kv, gpu)]
        kinds = dict.fromkeys(Kind.of(layer, dtype, kv, fused) for layer in layers for fused in (True, False))
        with ThreadPoolExecutor() as pool:  # threads suffice: each nvcc is a process
            plan = pool.submit(compile_plan, memory.max_num_seqs, gpu)
            list(pool.map(lambda kind: kind.compile(gpu), kinds))
            plan.result()
        self._kernels = {kind: DecodeAttention(kind, gpu) for kind in kinds}
        for layer in layers:
            shape = Shape.of(layer)
            key = (layer.group, layer.window, shape)
            if key not in self._plans:
                stretches = shape.num_stretches(gpu, layer.head_dim)
                self._plans[key] = SharedPlan(shape, memory.max_num_seqs, stretches, gpu, device)
            if (shape, layer.head_dim) not in self._partials:
                rows = self._plans[key].max_part_rows()
                self._partials[shape, layer.head_dim] = Partials.allocate(
                    rows, memory.max_num_seqs, shape, layer.head_dim, device
                )
        self.decodes_alone = len(layers) == len(memory.layers)

    @property
    def num_bytes(self) -> int:
        arrays = [array for plan in self._plans.values() for array in plan.arrays]
        for part in self._partials.values():
            arrays += [part.values, part.max_sum, part.done]
        return sum(array.nbytes for array in arrays)

    def plan(self, step: DeviceStep) -> None:
        if not step.kind.has_decodes or step.kind.decode_threshold > 1:
            return
        for (group, window, _), plan in self._plans.items():
            plan.make(
                query_start_loc=step.query_start_loc, seq_lens=step.seq_lens, rows=step.rows,
                block_table=step.block_tables[group], block_size=self._memory.kv.block_size, window=window,
                shares=True, chained=self._memory.gpu.chains,
            )  # fmt: skip

    def decode(
        self, layer: AttentionLayer, transform: HeadTransform | None, otherwise: AttentionLaunch
    ) -> AttentionLaunch:
        memory, shape = self._memory, Shape.of(layer)
        if not self._plans:
            return otherwise
        kind = Kind.of(layer, TORCH_DTYPE[memory.dtype], memory.kv, transform is not None)
        kernel, partials = self._kernels[kind], self._partials[shape, layer.head_dim]
        plan, pools = self._plans[layer.group, layer.window, shape], memory.pools

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            if step.kind.decode_threshold > 1:
                return otherwise(step, q, out)
            kernel.run(
                q, out, layer, pools[layer], plan, partials, block_table=step.block_tables[layer.group],
                transform=transform,
            )  # fmt: skip

        return launch

    def prefill(self, layer: AttentionLayer, otherwise: AttentionLaunch) -> AttentionLaunch:
        return otherwise
