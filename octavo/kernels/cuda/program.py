"""A recorded forward pass bound to kernels, weights and buffers: `run` launches it, and allocates nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from octavo.kernels.attention import ModelAttention
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.ops import OPS, Activation, AttentionLayer, Index
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.program.recorder import Instruction, OpByOp, Recording, See, Value, share_buffers
from octavo.kernels.triton.attention.memory import AttentionMemory
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform, rotary_kv_write
from octavo.kernels.triton.elementwise import elementwise, norm
from octavo.kernels.triton.elementwise.elementwise import embedding
from octavo.kernels.triton.linear.skinny_linear import choose_tiling, skinny_linear

if TYPE_CHECKING:
    from octavo.kernels.triton.linear.tile_linear import TileLinear


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What all programs of a model share."""

    weights: DeviceWeights
    gpu: GPU
    memory: AttentionMemory
    attention: ModelAttention
    see: See | None  # None: programs run as a whole


Launch = Callable[..., None]  # (step, its tensors in the instruction's order)


class Program:
    """One way through a model. Products are `skinny_linear` or, if there is room for the `parts` that a split product
    leaves to a norm (float32, flat), tiles where that is faster than cuBLAS."""

    def __init__(
        self, recording: Recording, surroundings: Surroundings, max_rows: int, parts: torch.Tensor | None = None
    ) -> None:
        self._around, self._parts = surroundings, parts
        self._plan = share_buffers(recording.instructions, recording.given, recording.kept)
        self._calls = [self._bind(instruction) for instruction in recording.instructions]
        self._kept, self._given = recording.kept, recording.given
        self._traced = None if surroundings.see is None else (recording, surroundings.see)
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
        if self._traced is not None:
            self._run_op_by_op(*self._traced, step, num_rows)
            return self.kept(num_rows)
        for launch, values in self._calls:
            launch(step, *(self._view(value, num_rows) for value in values))
        return self.kept(num_rows)

    def _run_op_by_op(self, recording: Recording, see: See, step: DeviceStep | None, num_rows: int) -> None:
        def view(value: Value) -> torch.Tensor:
            return self._view(value, num_rows)

        def run(index: int) -> None:
            launch, values = self._calls[index]
            launch(step, *map(view, values))

        recording.run_again(OpByOp(recording.instructions, run, view, see), map(view, recording.given))

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
        op, arguments = instruction.op, instruction.arguments
        is_elementwise = op in OPS and OPS[op].is_elementwise
        launch = self._elementwise(op, arguments) if is_elementwise else getattr(self, f"_{op}")(**arguments)
        return launch, (*instruction.inputs, *instruction.outputs)

    def _elementwise(self, op: str, arguments: dict[str, float | str]) -> Launch:
        numbers = [value for value in arguments.values() if not isinstance(value, str)]
        word = "".join(value for value in arguments.values() if isinstance(value, str))
        chained = self._around.gpu.chains

        def launch(step: DeviceStep, *tensors: torch.Tensor) -> None:
            elementwise.elementwise(op, *tensors, numbers=numbers, word=word, chained=chained)

        return launch

    # One method for each other op: its arguments, and the weights among them uploaded, to a launch

    def _embedding(self, table: Parameter, index: Index, offset: int, scale: float) -> Launch:
        table_VH, chained = self._around.weights.stacked(table), self._around.gpu.chains

        def launch(step: DeviceStep, out: torch.Tensor) -> None:
            embedding(table_VH, getattr(step, index), out, offset=offset, scale=scale, chained=chained)

        return launch

    def _linear(
        self,
        weight: Linear,
        gate: Activation | None = None,
        norm_weight: Parameter | None = None,
        eps: float = 1e-6,
    ) -> Launch:
        weights, chained = self._around.weights, self._around.gpu.chains
        matrix = weights.stacked(*weight.parts)
        bias = weights.stacked(*weight.biases) if weight.biases else None
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

    def _linear_add_rms_norm(self, weight: Linear, norm_weight: Parameter, eps: float) -> Launch:
        """The outputs: the normed sum, and the sum in the residual's own memory."""
        around = self._around
        matrix, norm_H = around.weights.stacked(*weight.parts), around.weights.vector(norm_weight)
        tiles, room, chained = self._tiles(matrix), self._parts, around.gpu.chains

        def launch(
            step: DeviceStep, x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor, total: torch.Tensor
        ) -> None:
            tile = None if tiles is None else tiles.tile_for(len(x), in_parts=True)
            tiling = choose_tiling(len(x), out.shape[1], x.shape[1])
            if tiles is not None and tile is not None:
                assert room is not None, "where products are tiles there is room for their parts"
                parts = room[: tile.split * out.numel()].view(tile.split, *out.shape)
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
        if self._parts is None:
            return None
        from octavo.kernels.triton.linear.tile_linear import TileLinear

        return TileLinear(matrix, gate)

    def _rms_norm(self, weight: Parameter, eps: float) -> Launch:
        weight_H, chained = self._around.weights.vector(weight), self._around.gpu.chains
        return lambda step, x, out: norm.rms_norm(x, weight_H, eps, out, chained=chained)

    def _add_rms_norm(self, weight: Parameter, eps: float) -> Launch:
        """The outputs are the inputs' own memory: the normed sum over x, the sum over the residual."""
        weight_H, chained = self._around.weights.vector(weight), self._around.gpu.chains
        return lambda step, x, residual, out, total: norm.add_rms_norm(x, residual, weight_H, eps, out, chained=chained)

    def _layer_norm(self, weight: Parameter, bias: Parameter | None, eps: float) -> Launch:
        weights, chained = self._around.weights, self._around.gpu.chains
        weight_H, bias_H = weights.vector(weight), None if bias is None else weights.vector(bias)
        return lambda step, x, out: norm.layer_norm(x, weight_H, bias_H, eps, out, chained=chained)

    def _gated_activation(self, kind: Activation) -> Launch:
        return lambda step, x, out: elementwise.gated_activation(x, kind, out, chained=self._around.gpu.chains)

    def _rotary_kv_write(self, layer: AttentionLayer) -> Launch:
        transform = HeadTransform.of(layer, self._around.weights)
        chained, memory = self._around.gpu.chains, self._around.memory
        plan, pools = memory.plan_of(layer), memory.pools

        def launch(step: DeviceStep, qkv: torch.Tensor, q: torch.Tensor) -> None:
            rotary_kv_write(
                qkv, q, layer, pools[layer], transform, slots=plan.slots, positions=step.positions, chained=chained
            )

        return launch

    def _paged_attention(self, layer: AttentionLayer) -> Launch:
        """A step with chunks: the sequences that decode by one launch, the others by another."""
        decode, prefill = self._around.attention.decode(layer), self._around.attention.prefill(layer)

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            if step.kind.has_decodes:
                decode(step, q, out)
            if step.kind.has_chunks:
                prefill(step, q, out)

        return launch

    def _attention(self, layer: AttentionLayer) -> Launch:
        return self._around.attention.decode(layer, HeadTransform.of(layer, self._around.weights))


def _library_linear(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, added: torch.Tensor | None) -> None:
    if added is None:
        torch.mm(x, weight.t(), out=out)
    elif added.data_ptr() == out.data_ptr():
        out.addmm_(x, weight.t())  # told that they are one tensor, it copies nothing
    else:
        torch.addmm(added, x, weight.t(), out=out)
