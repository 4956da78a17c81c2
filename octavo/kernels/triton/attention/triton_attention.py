"""Octavo's own kernels as attention backends.

TritonAttention   the plain kernels: they take every layer and run on every GPU
HopperAttention   the Gluon kernels, for the layers and steps where they are faster
FixedAttention    the kernel of a deterministic engine, for all steps
"""

from __future__ import annotations

from typing import ClassVar

import torch

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.attention_sizes import PREFILL_TILE, fixed_attention_workspace
from octavo.kernels.cuda.driver import GPU, has_hopper_kernels
from octavo.kernels.cuda.step import AttentionLaunch, DeviceStep
from octavo.kernels.kv_layout import LARGEST_CODE, KVDType, KVLayout
from octavo.kernels.triton.attention.decode_attention import decode_attention
from octavo.kernels.triton.attention.fixed_attention import PartialResults, fixed_attention
from octavo.kernels.triton.attention.fixed_part import num_parts
from octavo.kernels.triton.attention.join import join_parts
from octavo.kernels.triton.attention.memory import AttentionMemory
from octavo.kernels.triton.attention.prefill_attention import prefill_attention
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform
from octavo.kernels.triton.attention.tiles import ROWS, FixedTiling

HOPPER_HEAD_DIMS = (64, 128)
HOPPER_MAX_GROUP = 16  # query heads per kv head


class TritonAttention:
    """Implements `octavo.kernels.attention.AttentionBackend`. Its plan serves the other backends too."""

    decodes_alone = False
    short_chunk = 1
    num_bytes = 0
    decodes_in_parts: ClassVar[bool] = True
    scales_projections: ClassVar[bool] = False
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
        pools, gpu = memory.pools, memory.gpu
        number, chained = gpu.num_multiprocessors, gpu.chains

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            decode_attention(
                q, out, layer, pools[layer], plan, memory.workspace, query_start_loc=step.query_start_loc,
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


class HopperAttention:
    """Implements `octavo.kernels.attention.AttentionBackend`. It leaves chunks of short sequences, decodes of several
    new tokens, and all decodes over codes, to other backends."""

    decodes_alone = False
    short_chunk = 1
    num_bytes = 0
    decodes_in_parts: ClassVar[bool] = True
    scales_projections: ClassVar[bool] = False
    longest_captured: ClassVar[int | None] = None

    @staticmethod
    def why_not(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU) -> list[str]:
        reasons = []
        if not has_hopper_kernels(gpu.capability):
            reasons.append("it needs a Hopper GPU, and a Triton that has Gluon")
        if dtype == "float32":
            reasons.append("it computes in 16 bits, not in float32")
        if kv.dtype == "int8":
            reasons.append("it reads no KV blocks in int8")
        no_prefill = _no_prefill(layer)
        if kv.dtype in LARGEST_CODE:
            return reasons + no_prefill + (["sinks over codes"] if layer.sinks is not None else [])
        return reasons + _no_decode(layer) if no_prefill else reasons

    def __init__(self, memory: AttentionMemory) -> None:
        from octavo.kernels.triton.attention.hopper_decode import HopperDecode
        from octavo.kernels.triton.attention.hopper_prefill import HopperPrefill

        number = memory.gpu.num_multiprocessors
        self._memory = memory
        self._decode, self._prefill = HopperDecode(number), HopperPrefill(number, memory.device)

    def plan(self, step: DeviceStep) -> None:
        """Nothing to do: these kernels use the plain kernels' plan."""

    def decode(
        self, layer: AttentionLayer, transform: HeadTransform | None, otherwise: AttentionLaunch
    ) -> AttentionLaunch:
        if self._memory.has_codes or _no_decode(layer):
            return otherwise
        memory, plan, attend = self._memory, self._memory.plan_of(layer), self._decode.attend
        pools, chained = memory.pools, memory.gpu.chains

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            if step.kind.decode_threshold > 1:
                return otherwise(step, q, out)
            table, workspace = step.block_tables[layer.group], memory.workspace
            attend(q, out, layer, pools[layer], plan, workspace, table, transform, chained=chained)
            join_parts(out, layer, pools[layer], plan, workspace, step.query_start_loc, chained=chained)

        return launch

    def prefill(self, layer: AttentionLayer, otherwise: AttentionLaunch) -> AttentionLaunch:
        if _no_prefill(layer):
            return otherwise
        memory, plan, attend = self._memory, self._memory.plan_of(layer), self._prefill.prefill
        pools, chained = memory.pools, memory.gpu.chains

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            if step.kind.has_long_chunks:
                table = step.block_tables[layer.group]
                attend(q, out, layer, pools[layer], plan, block_table=table, chained=chained)
            else:
                otherwise(step, q, out)

        return launch


class FixedAttention:
    """Implements `octavo.kernels.attention.AttentionBackend`. One launch serves a step's decodes and chunks."""

    decodes_alone = False
    short_chunk = 1
    decodes_in_parts: ClassVar[bool] = False  # it has partial results of its own
    scales_projections: ClassVar[bool] = False
    longest_captured: ClassVar[int | None] = None

    @staticmethod
    def why_not(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU) -> list[str]:
        group = layer.num_heads // layer.num_kv_heads
        is_too_many = group > ROWS and layer.latent is None
        return [f"{group} query heads share a kv head; it takes up to {ROWS}"] if is_too_many else []

    def __init__(self, memory: AttentionMemory) -> None:
        shapes = fixed_attention_workspace(memory.layers)
        rooms = {name: torch.empty(shape, dtype=torch.float32, device=memory.device) for name, shape in shapes.items()}
        self._memory, self._partial = memory, PartialResults(**rooms)
        self._most_parts = num_parts(memory.max_model_len)

    @property
    def num_bytes(self) -> int:
        return self._partial.values.nbytes + self._partial.max_sum.nbytes

    def plan(self, step: DeviceStep) -> None:
        """For the places of new keys and values; its own kernels need no plan."""
        self._memory.make_plans(step)

    def decode(
        self, layer: AttentionLayer, transform: HeadTransform | None, otherwise: AttentionLaunch
    ) -> AttentionLaunch:
        assert transform is None, "a deterministic engine writes the cache alike in all steps"
        attend = self._launch(layer)

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            if not step.kind.has_chunks:
                attend(step, q, out)

        return launch

    def prefill(self, layer: AttentionLayer, otherwise: AttentionLaunch) -> AttentionLaunch:
        return self._launch(layer)

    def _launch(self, layer: AttentionLayer) -> AttentionLaunch:
        pools, gpu, partial, most = self._memory.pools, self._memory.gpu, self._partial, self._most_parts
        tiling = FixedTiling.of(layer, self._memory.dtype, gpu.capability)
        return lambda step, q, out: fixed_attention(
            q, out, layer, pools[layer], partial, step, tiling=tiling, most_parts=most, chained=gpu.chains
        )


def _no_decode(layer: AttentionLayer) -> list[str]:
    """Why the decode kernel does not take the layer."""
    group = layer.num_heads // layer.num_kv_heads
    too_many = f"{group} query heads share a kv head, {HOPPER_MAX_GROUP} may"
    return [*_neither(layer), too_many] if group > HOPPER_MAX_GROUP else _neither(layer)


def _no_prefill(layer: AttentionLayer) -> list[str]:
    """Why the prefill kernel does not take the layer."""
    return _neither(layer) if layer.window is None else [*_neither(layer), "chunks with a window"]


def _neither(layer: AttentionLayer) -> list[str]:
    reasons = []
    if layer.head_dim not in HOPPER_HEAD_DIMS:
        reasons.append(f"heads of {layer.head_dim}; it takes {' and '.join(map(str, HOPPER_HEAD_DIMS))}")
    if layer.softcap is not None:
        reasons.append("capped scores")
    if layer.scale <= 0:
        reasons.append(f"a scale of {layer.scale}; it must be positive")
    return reasons
