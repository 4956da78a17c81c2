"""What the attention backends of one model share on its GPU: plans, the KV pool, and room for partial results."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.device import StepLimits
from octavo.kernels.kv_layout import KVLayout
from octavo.kernels.ops import AttentionLayer
from octavo.kernels.triton.attention.kv_pool import LayerPool
from octavo.kernels.triton.attention.partial_results import DecodeWorkspace
from octavo.kernels.triton.attention.plan import AttentionPlan, make_plan


class AttentionMemory:
    """Made with the model; `bind` brings the pool. Layers that share block table and window share a plan."""

    def __init__(
        self, layers: Sequence[AttentionLayer], kv: KVLayout, limits: StepLimits, gpu: GPU, device: torch.device
    ) -> None:
        self.gpu, self.device = gpu, device
        self.pools: dict[AttentionLayer, LayerPool] = {}
        self.workspace = DecodeWorkspace.allocate(limits.max_num_seqs, layers, device)
        self._layers, self._kv = layers, kv
        keys = dict.fromkeys((layer.group, layer.window) for layer in layers)
        seqs, tokens = limits.max_num_seqs, limits.max_num_tokens
        self._plans = {key: AttentionPlan.allocate(seqs, tokens, device) for key in keys}

    def bind(self, pool: torch.Tensor) -> None:
        """`pool`: the whole KV pool, uint8."""
        self.pools.update({layer: LayerPool.of(pool, self._kv, layer) for layer in self._layers})

    def plan_of(self, layer: AttentionLayer) -> AttentionPlan:
        return self._plans[layer.group, layer.window]

    def make_plans(self, step: DeviceStep) -> None:
        for (group, window), plan in self._plans.items():
            make_plan(
                plan,
                query_start_loc=step.query_start_loc,
                seq_lens=step.seq_lens,
                positions=step.positions,
                rows=step.rows,
                block_table=step.block_tables[group],
                block_size=self._kv.block_size,
                window=window,
                decode_threshold=step.kind.decode_threshold,
                chained=self.gpu.chains,
            )
