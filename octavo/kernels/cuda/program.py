"""A recorded forward pass bound to kernels, weights and buffers: `run` launches it, and allocates nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.external.flash_attention import FlashAttention
from octavo.kernels.ops import Activation, AttentionLayer, FloatArray, Index, LinearWeight
from octavo.kernels.program.buffers import share_buffers
from octavo.kernels.program.fuse import Recording
from octavo.kernels.program.recorder import Instruction, Value
from octavo.kernels.tensor import HostTensor
from octavo.kernels.triton.attention.decode_attention import DecodeWorkspace, decode_attention
from octavo.kernels.triton.attention.kv_pool import LayerPool
from octavo.kernels.triton.attention.plan import PREFILL_TILE, AttentionPlan
from octavo.kernels.triton.attention.prefill_attention import prefill_attention
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform, rotary_kv_write
from octavo.kernels.triton.elementwise import elementwise, norm
from octavo.kernels.triton.elementwise.embedding import embedding
from octavo.kernels.triton.linear.skinny_linear import choose_tiling, skinny_linear

if TYPE_CHECKING:
    from octavo.kernels.triton.attention.hopper_decode import HopperDecode
    from octavo.kernels.triton.attention.hopper_prefill import HopperPrefill
    from octavo.kernels.triton.linear.tile_linear import TileLinear

PlanKey = tuple[int, int | None]  # cache group, window


@dataclass(frozen=True, slots=True, eq=False)
class DeviceStep:
    """One step's batch tensors on the device, int32; see `StepBatch`. `rows` index the block tables."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    rows: torch.Tensor
    block_tables: tuple[torch.Tensor, ...]
    has_chunks: bool
    has_decodes: bool
    has_long_chunks: bool = False  # a chunk's sequence has LONG_SEQUENCE tokens or more
    chunks: Chunks | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """A step's chunks as a library wants them, where one is used. num_queries [S]: 0 for sequences that decode."""

    num_queries: torch.Tensor
    max_chunk: int
    max_seq_len: int


@dataclass(frozen=True, slots=True, eq=False)
class HopperKernels:
    """A Hopper's own kernels for attention, for the layers that they take."""

    prefill: HopperPrefill
    decode: HopperDecode

    def prefill_for(self, layer: AttentionLayer, dtype: torch.dtype) -> HopperPrefill | None:
        return self.prefill if self.prefill.takes(layer, dtype) else None

    def decode_for(self, layer: AttentionLayer, dtype: torch.dtype) -> HopperDecode | None:
        return self.decode if self.decode.takes(layer, dtype) else None


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What all programs of a model share. pools: by a layer's index in its group, filled once the pool is there."""

    weights: DeviceWeights
    plans: Mapping[PlanKey, AttentionPlan]
    pools: dict[int, LayerPool]
    workspace: DecodeWorkspace
    num_multiprocessors: int
    chained: bool  # programmatic dependent launch, Hopper's and later
    flash: FlashAttention | None = None
    hopper: HopperKernels | None = None
    parts: torch.Tensor | None = None  # float32, room for what a split product leaves to a norm; None: no tiles


Launch = Callable[..., None]  # (step, its tensors in the instruction's order)


class Program:
    """One way through a model. Products are `skinny_linear` or, if `tiled`, tiles where that is faster than cuBLAS."""

    def __init__(self, recording: Recording, surroundings: Surroundings, max_rows: int, *, tiled: bool = False) -> None:
        self._around, self._tiled = surroundings, tiled
        self._plan = share_buffers(recording.instructions, recording.given, recording.kept)
        self._calls = [self._bind(instruction) for instruction in recording.instructions]
        self._kept, self._given = recording.kept, recording.given
        self.max_rows = max_rows
        self._buffers: list[torch.Tensor] = []

    @property
    def num_elements(self) -> int:
        """Of the activations, in the largest step."""
        return sum(map(self._size, self._plan.widths))

    def place(self, memory: torch.Tensor) -> None:
        """Cut the buffers out of `memory`, flat, which programs that never overlap in time may share."""
        start = 0
        for width in self._plan.widths:
            self._buffers.append(memory[start : start + width * self.max_rows])
            start += self._size(width)

    def _size(self, width: int) -> int:
        """Elements of a buffer; the next one starts at a multiple of 16 bytes, as TMA wants it."""
        return -(-width * self.max_rows // 8) * 8

    def run(self, step: DeviceStep | None, num_rows: int) -> list[torch.Tensor]:
        """Launch everything; returns what was kept, [num_rows, width] each, good until the memory is used again."""
        assert num_rows <= self.max_rows, f"{num_rows} rows in buffers for {self.max_rows}"
        for launch, values in self._calls:
            launch(step, *(self._view(value, num_rows) for value in values))
        return self.kept(num_rows)

    def kept(self, num_rows: int) -> list[torch.Tensor]:
        """What the last run of so many rows returned."""
        return [self._view(value, num_rows) for value in self._kept]

    def given(self, num_rows: int) -> list[torch.Tensor]:
        """Where the caller puts the inputs of a program that has some."""
        return [self._view(value, num_rows) for value in self._given]

    def _view(self, value: Value, num_rows: int) -> torch.Tensor:
        buffer = self._buffers[self._plan.buffer_of[value.storage]]
        return buffer[: num_rows * value.width].view(num_rows, value.width)

    def _bind(self, instruction: Instruction) -> tuple[Launch, tuple[Value, ...]]:
        launch = getattr(self, f"_{instruction.op}")(**instruction.arguments)
        return launch, (*instruction.inputs, *instruction.outputs)

    # One method an op: its arguments, and the weights among them uploaded, to a launch

    def _embedding(self, table: HostTensor, index: Index, offset: int, scale: float) -> Launch:
        table_VH, chained = self._around.weights.matrix(table), self._around.chained

        def launch(step: DeviceStep, out: torch.Tensor) -> None:
            embedding(table_VH, getattr(step, index), out, offset=offset, scale=scale, chained=chained)

        return launch

    def _linear(
        self,
        weight: LinearWeight,
        gate: Activation | None = None,
        norm_weight: FloatArray | None = None,
        eps: float = 1e-6,
    ) -> Launch:
        weights, chained = self._around.weights, self._around.chained
        matrix = weights.matrix(*weight.parts)
        bias = None if weight.bias is None else weights.vector(weight.bias, weights.dtype)
        norm_H = None if norm_weight is None else weights.vector(norm_weight)
        tiles = self._tiles(matrix, gate)

        def launch(step: DeviceStep, x: torch.Tensor, *rest: torch.Tensor) -> None:
            *residuals, out = rest
            residual = residuals[0] if residuals else None
            tile = None if tiles is None else tiles.tile_for(len(x))
            if tiles is not None and tile is not None:
                tiles.run(x, out, bias=bias, residual=residual, tile=tile, chained=chained)
                return
            tiling = choose_tiling(len(x), out.shape[1], x.shape[1])
            if tiling is None:
                assert gate is None, "a gate is fused where a tiling takes it"
                assert norm_H is None, "a norm is fused where a tiling takes it"
                _library_linear(x, matrix, out, residual if bias is None else bias)
            else:
                skinny_linear(
                    x, matrix, out, bias=bias, norm_weight=norm_H, eps=eps, residual=residual, gate=gate,
                    tiling=tiling, chained=chained,
                )  # fmt: skip

        return launch

    def _linear_add_rms_norm(self, weight: LinearWeight, norm_weight: FloatArray, eps: float) -> Launch:
        """The outputs: the normed sum, and the sum in the residual's own memory."""
        around = self._around
        matrix, norm_H = around.weights.matrix(*weight.parts), around.weights.vector(norm_weight)
        tiles, chained = self._tiles(matrix), around.chained

        def launch(
            step: DeviceStep, x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor, total: torch.Tensor
        ) -> None:
            tile = None if tiles is None else tiles.tile_for(len(x), in_parts=True)
            tiling = choose_tiling(len(x), out.shape[1], x.shape[1])
            if tiles is not None and tile is not None:
                assert around.parts is not None, "where products are tiles there is room for their parts"
                parts = around.parts[: tile.split * out.numel()].view(tile.split, *out.shape)
                tiles.run(x, parts, tile=tile, chained=chained)
                norm.sum_rms_norm(parts, total, norm_H, eps, out, chained=chained)
            elif tiling is not None:
                skinny_linear(x, matrix, total, residual=total, tiling=tiling, chained=chained)
                norm.rms_norm(total, norm_H, eps, out, chained=chained)
            else:
                _library_linear(x, matrix, out, None)
                norm.add_rms_norm(out, total, norm_H, eps, out, chained=chained)

        return launch

    def _tiles(self, matrix: torch.Tensor, gate: Activation | None = None) -> TileLinear | None:
        if not self._tiled:
            return None
        from octavo.kernels.triton.linear.tile_linear import TileLinear

        return TileLinear(matrix, gate)

    def _rms_norm(self, weight: FloatArray, eps: float) -> Launch:
        weight_H, chained = self._around.weights.vector(weight), self._around.chained
        return lambda step, x, out: norm.rms_norm(x, weight_H, eps, out, chained=chained)

    def _add_rms_norm(self, weight: FloatArray, eps: float) -> Launch:
        """The outputs are the inputs' own memory: the normed sum over x, the sum over the residual."""
        weight_H, chained = self._around.weights.vector(weight), self._around.chained
        return lambda step, x, residual, out, total: norm.add_rms_norm(x, residual, weight_H, eps, out, chained=chained)

    def _layer_norm(self, weight: FloatArray, bias: FloatArray | None, eps: float) -> Launch:
        weights, chained = self._around.weights, self._around.chained
        weight_H, bias_H = weights.vector(weight), None if bias is None else weights.vector(bias)
        return lambda step, x, out: norm.layer_norm(x, weight_H, bias_H, eps, out, chained=chained)

    def _add(self) -> Launch:
        return lambda step, x, y, out: elementwise.add(x, y, out, chained=self._around.chained)

    def _activation(self, kind: Activation) -> Launch:
        return lambda step, x, out: elementwise.activation(x, kind, out, chained=self._around.chained)

    def _gated_activation(self, kind: Activation) -> Launch:
        return lambda step, x, out: elementwise.gated_activation(x, kind, out, chained=self._around.chained)

    def _softcap(self, cap: float) -> Launch:
        return lambda step, x, out: elementwise.softcap(x, cap, out, chained=self._around.chained)

    def _rotary_kv_write(self, layer: AttentionLayer) -> Launch:
        around, transform = self._around, self._transform(layer)
        plan = around.plans[layer.group, layer.window]

        def launch(step: DeviceStep, qkv: torch.Tensor, q: torch.Tensor) -> None:
            pool = around.pools[layer.index_in_group]
            rotary_kv_write(
                qkv, q, layer, pool, transform, slots=plan.slots, positions=step.positions, chained=around.chained
            )

        return launch

    def _paged_attention(self, layer: AttentionLayer) -> Launch:
        """A step with chunks: the sequences with one new token by one kernel, the others by another."""
        around, decode = self._around, self._decode(layer)
        plan, chained = around.plans[layer.group, layer.window], around.chained
        flash = around.flash if FlashAttention.takes(layer, around.weights.dtype) else None
        hopper = None if around.hopper is None else around.hopper.prefill_for(layer, around.weights.dtype)

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            if step.has_decodes:
                decode(step, q, out, None)
            if step.chunks is not None and flash is not None:
                flash.prefill(
                    q, out, layer, around.pools[layer.index_in_group],
                    query_start_loc=step.query_start_loc, num_queries=step.chunks.num_queries,
                    seq_lens=step.seq_lens, block_table=step.block_tables[layer.group],
                    max_chunk=step.chunks.max_chunk, max_seq_len=step.chunks.max_seq_len,
                )  # fmt: skip
            elif step.has_long_chunks and hopper is not None:
                hopper.prefill(
                    q, out, layer, around.pools[layer.index_in_group], plan,
                    block_table=step.block_tables[layer.group], chained=chained,
                )  # fmt: skip
            elif step.has_chunks:
                prefill_attention(
                    q, out, layer, around.pools[layer.index_in_group], plan,
                    max_tiles=len(step.positions) // PREFILL_TILE + len(step.seq_lens),
                    block_table=step.block_tables[layer.group], chained=chained,
                )  # fmt: skip

        return launch

    def _attention(self, layer: AttentionLayer) -> Launch:
        decode, transform = self._decode(layer), self._transform(layer)
        return lambda step, qkv, out: decode(step, qkv, out, transform)

    def _decode(self, layer: AttentionLayer) -> Launch:
        around, plan = self._around, self._around.plans[layer.group, layer.window]
        hopper = None if around.hopper is None else around.hopper.decode_for(layer, around.weights.dtype)

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor, transform: HeadTransform | None) -> None:
            decode_attention(
                q, out, layer, around.pools[layer.index_in_group], plan, around.workspace,
                query_start_loc=step.query_start_loc, block_table=step.block_tables[layer.group],
                num_multiprocessors=around.num_multiprocessors,
                transform=transform, hopper=hopper, chained=around.chained,
            )  # fmt: skip

        return launch

    def _transform(self, layer: AttentionLayer) -> HeadTransform:
        """A layer's head norms and angles; layers with one rotary table share its upload."""
        assert (layer.q_norm is None) == (layer.k_norm is None), "query and key heads are normed together or not at all"
        weights = self._around.weights
        nothing = torch.zeros(1, device=weights.device)
        cos, sin = (nothing, nothing) if layer.rotary is None else weights.rotary(layer.rotary)
        return HeadTransform(
            q_norm=nothing if layer.q_norm is None else weights.vector(layer.q_norm),
            k_norm=nothing if layer.k_norm is None else weights.vector(layer.k_norm),
            cos=cos,
            sin=sin,
            rotary_dim=0 if layer.rotary is None else layer.rotary.rotary_dim,
            has_norm=layer.q_norm is not None,
            eps=layer.norm_eps,
        )


def _library_linear(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, added: torch.Tensor | None) -> None:
    if added is None:
        torch.mm(x, weight.t(), out=out)
    elif added.data_ptr() == out.data_ptr():
        out.addmm_(x, weight.t())  # told that they are one tensor, it copies nothing
    else:
        torch.addmm(added, x, weight.t(), out=out)
