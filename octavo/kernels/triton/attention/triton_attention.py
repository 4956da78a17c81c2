"""TritonAttention: the plain kernels as an attention backend. They take every layer and run on every GPU."""

from __future__ import annotations

from typing import ClassVar

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.step import AttentionLaunch, DeviceStep
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.ops import AttentionLayer
from octavo.kernels.triton.attention.decode_attention import decode_attention
from octavo.kernels.triton.attention.memory import AttentionMemory
from octavo.kernels.triton.attention.plan import PREFILL_TILE
from octavo.kernels.triton.attention.prefill_attention import prefill_attention
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform


class TritonAttention:
    """Implements `octavo.kernels.attention.AttentionBackend`. Its plan serves the other backends too."""

    longest_captured: ClassVar[int | None] = None

    @staticmethod
    def why_not(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU) -> list[str]:
        return []

    def __init__(self, memory: AttentionMemory) -> None:
        self._memory = memory

    def plan(self, step: DeviceStep) -> None:
        self._memory.make_plans(step)

    def decode(
        self, layer: AttentionLayer, transform: HeadTransform | None, otherwise: AttentionLaunch
    ) -> AttentionLaunch:
        memory, plan = self._memory, self._memory.plan_of(layer)
        pools, workspace, gpu = memory.pools, memory.workspace, memory.gpu
        number, chained = gpu.num_multiprocessors, gpu.chains

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            decode_attention(
                q, out, layer, pools[layer], plan, workspace, query_start_loc=step.query_start_loc,
                block_table=step.block_tables[layer.group], num_multiprocessors=number, transform=transform,
                queries=step.kind.decode_threshold, chained=chained,
            )  # fmt: skip

        return launch

    def prefill(self, layer: AttentionLayer, otherwise: AttentionLaunch) -> AttentionLaunch:
        plan, pools, chained = self._memory.plan_of(layer), self._memory.pools, self._memory.gpu.chains

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            prefill_attention(
                q, out, layer, pools[layer], plan, max_tiles=len(step.positions) // PREFILL_TILE + len(step.seq_lens),
                block_table=step.block_tables[layer.group], chained=chained,
            )  # fmt: skip

        return launch
