"""A recorded forward pass bound to kernels, weights and buffers. `run` launches it and allocates nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from octavo.kernels.adapters import AdaptedModule
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.dense_product import FewRows
from octavo.kernels.cuda.kv_calibration import with_calibration
from octavo.kernels.cuda.latent_launch import latent_values_launch, latent_write_launch
from octavo.kernels.cuda.mixture_launch import MixtureLaunch
from octavo.kernels.cuda.normed_product import Adapt, normed_product, normed_quantized
from octavo.kernels.cuda.shared import Shared
from octavo.kernels.cuda.sizes import aligned, buffer_elements
from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.mixture import Mixture
from octavo.kernels.ops import OPS, Activation, Index, Outside
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.program.recorder import Instruction, OpByOp, Recording, See, Value, share_buffers
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform, rotary_kv_write
from octavo.kernels.triton.elementwise import elementwise, norm
from octavo.kernels.triton.elementwise.elementwise import embedding
from octavo.kernels.triton.elementwise.wide_norm import WideNorm
from octavo.kernels.triton.linear.fixed_linear import fixed_linear
from octavo.kernels.triton.linear.skinny_linear import choose_tiling, library_linear

if TYPE_CHECKING:
    from octavo.kernels.cuda.adapters import DeviceAdapters
    from octavo.kernels.cuda.quantized_product import QuantizedProduct
    from octavo.kernels.triton.linear.tile_linear import TileLinear


Launch = Callable[..., None]  # (step, the instruction's tensors: inputs, then outputs)


class Program:
    """One way through a model. parts: room, float32 and flat, for the partial sums that a split product leaves to a
    norm. With it products are tiles where these beat cuBLAS; otherwise they are `skinny_linear` or cuBLAS."""

    def __init__(self, recording: Recording, shared: Shared, max_rows: int, parts: torch.Tensor | None = None) -> None:
        self._shared, self._parts = shared, parts
        self._weights, self._chained = shared.weights, shared.gpu.chains
        self._plan = share_buffers(recording.instructions, recording.given, recording.kept)
        self._calls = [self._bind(instruction) for instruction in recording.instructions]
        self._kept, self._given = recording.kept, recording.given
        self._traced = None if shared.see is None else (recording, shared.see)
        self.max_rows = max_rows
        self._buffers: list[torch.Tensor] = []

    @property
    def num_elements(self) -> int:
        return buffer_elements(self._plan, self.max_rows)

    def place(self, memory: torch.Tensor) -> None:
        """Cut the buffers out of `memory`, which is flat. Programs that never overlap in time may share it."""
        start = 0
        for width in self._plan.widths:
            self._buffers.append(memory[start : start + width * self.max_rows])
            start += aligned(width * self.max_rows)

    def run(self, step: DeviceStep | None, num_rows: int) -> list[torch.Tensor]:
        """Launch everything. Returns the kept tensors, [num_rows, width] each, valid until the memory is reused."""
        assert num_rows <= self.max_rows, f"{num_rows} rows in buffers for {self.max_rows}"
        if self._traced is not None:
            self._run_op_by_op(*self._traced, step, num_rows)
        else:
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
        """The result of the last run, which had this many rows."""
        return [self._view(value, num_rows) for value in self._kept]

    def given(self, num_rows: int) -> list[torch.Tensor]:
        """The buffers for the program's inputs; the caller fills them."""
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
        chained = self._chained

        def launch(step: DeviceStep, *tensors: torch.Tensor) -> None:
            elementwise.elementwise(op, *tensors, numbers=numbers, word=word, chained=chained)

        return launch

    # One method for each other op: it uploads the weights among the op's arguments and returns a launch

    def _embedding(self, table: Parameter, index: Index, offset: int, scale: float, outside: Outside) -> Launch:
        table_VH, chained = self._weights.stacked(table), self._chained
        is_part = outside == "zeros"

        def launch(step: DeviceStep, out: torch.Tensor) -> None:
            ids = getattr(step, index)
            embedding(table_VH, ids, out, offset=offset, scale=scale, is_part=is_part, chained=chained)

        return launch

    def _all_reduce(self) -> Launch:
        sums = self._shared.sums
        return lambda step, x, out: None if sums is None else sums.all_reduce(out)

    def _all_reduce_add_rms_norm(self, weight: Parameter, eps: float) -> Launch:
        """Outputs as those of `_add_rms_norm`."""
        weight_H, sums = self._weights.vector(weight), self._shared.sums
        assert sums is not None, "one rank adds nothing up"
        sums.prepare_norm(len(weight_H))
        return lambda step, x, residual, out, total: sums.add_rms_norm(out, total, weight_H, eps, out)

    def _linear(self, weight: Linear, *, adapters: AdaptedModule | None = None, **fused: Any) -> Launch:
        product, adapt = self._product(weight, **fused), self._adapt(adapters)
        if adapt is None:
            return product

        def launch(step: DeviceStep, x: torch.Tensor, *rest: torch.Tensor) -> None:
            product(step, x, *rest)
            adapt(step, x, rest[-1])

        return launch

    def _adapt(self, module: AdaptedModule | None) -> Adapt | None:
        if module is None:
            return None
        own = self._adapters
        return lambda step, x, y: own.add(module, own.rows_of(step), x, y)

    def _product(
        self, weight: Linear, gate: Activation | None = None, norm_weight: Parameter | None = None, eps: float = 1e-6,
        is_dealt: bool = False,
    ) -> Launch:  # fmt: skip
        weights, chained = self._weights, self._chained
        norm_H = None if norm_weight is None else weights.vector(norm_weight)
        if is_dealt:
            own = self._kept_product(weight)
            return lambda step, x, out: own.run_dealt(x, out)
        if (product := self._shared.quantized_product(weight)) is not None:
            return lambda step, x, *rest: product.run(x, *rest, norm_weight=norm_H, eps=eps, gate=gate)
        matrix = weights.stacked(*weight.parts)
        bias = weights.stacked(*weight.biases) if weight.biases else None
        if self._shared.is_fixed:
            assert gate is None, "nothing is fused in a deterministic engine"
            return lambda step, x, out: fixed_linear(x, matrix, out, bias=bias, chained=chained)
        tiles, few = self._tiles(matrix, gate), FewRows(matrix, self._shared.gpu, gate)

        def launch(step: DeviceStep, x: torch.Tensor, *rest: torch.Tensor) -> None:
            *residuals, out = rest
            residual = residuals[0] if residuals else None
            tile = None if tiles is None else tiles.tile_for(len(x))
            if tiles is not None and tile is not None:
                tiles.run(x, out, bias=bias, residual=residual, tile=tile, chained=chained)
                return
            tiling = choose_tiling(len(x), out.shape[1], x.shape[1])
            if tiling is None:
                assert gate is None, "a gate is fused only where a tiling takes it"
                assert norm_H is None, "a norm is fused only where a tiling takes it"
                assert bias is None or residual is None, "both are added only where a tiling takes them"
                library_linear(x, matrix, out, residual if bias is None else bias)
            else:
                few.run(x, out, tiling=tiling, bias=bias, norm_weight=norm_H, eps=eps, residual=residual)

        return launch

    def _add_adapters(self, module: AdaptedModule, gate: Activation | None = None) -> Launch:
        own = self._adapters

        def launch(step: DeviceStep, y: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
            own.add(module, own.rows_of(step), x, y, None if gate is None else (gate, out))

        return launch

    def _add_table_adapters(self, module: AdaptedModule, offset: int) -> Launch:
        own = self._adapters
        return lambda step, y, out: own.add_table(module, step, out, offset)

    @property
    def _adapters(self) -> DeviceAdapters:
        assert self._shared.adapters is not None, "a model with adapters has slots for them"
        return self._shared.adapters

    def _linear_add_rms_norm(
        self, weight: Linear, norm_weight: Parameter, eps: float, adapters: AdaptedModule | None
    ) -> Launch:
        """Outputs the normed sum, and the sum in the residual's memory."""
        norm_H, adapt = self._weights.vector(norm_weight), self._adapt(adapters)
        how: dict[str, Any] = {"room": self._parts, "adapt": adapt, "chained": self._chained}
        if (product := self._shared.quantized_product(weight)) is not None:
            return normed_quantized(product, norm_H, eps, **how)
        matrix = self._weights.stacked(*weight.parts)
        return normed_product(matrix, norm_H, eps, tiles=self._tiles(matrix), **how)

    def _quantising_linear(
        self, weight: Linear, norm_weight: Parameter | None = None, left_by: Linear | None = None, **how: Any
    ) -> Launch:
        """The product; with a residual also the sum that is normed, in the residual's memory. left_by: the product
        whose scales are left to this one's rows."""
        norm_H = None if norm_weight is None else self._weights.vector(norm_weight)
        product = self._kept_product(weight)
        before = None if left_by is None else self._kept_product(left_by)

        def launch(step: DeviceStep, x: torch.Tensor, *rest: torch.Tensor) -> None:
            out, total = rest[-2:] if len(rest) > 1 else (rest[0], None)
            product.run_quantising(x, out, total=total, norm_weight=norm_H, left_by=before, **how)

        return launch

    def _deals(self, reader: Linear | None) -> Callable[[int], bool]:
        """Whether the inputs of so many rows are dealt for the product that reads them."""
        return (lambda num_rows: False) if reader is None else self._kept_product(reader).deals

    def _kept_product(self, weight: Linear) -> QuantizedProduct:
        """One whose matrix stays quantised, and is read by kernels in CUDA C++."""
        from octavo.kernels.cuda.quantized_product import QuantizedProduct

        product = self._shared.quantized_product(weight)
        assert isinstance(product, QuantizedProduct), f"{weight.name} is not read by kernels in CUDA C++"
        return product

    def _tiles(self, matrix: torch.Tensor, gate: Activation | None = None) -> TileLinear | None:
        if self._parts is None:
            return None
        from octavo.kernels.triton.linear.tile_linear import TileLinear

        return TileLinear(matrix, gate)

    def _rms_norm(self, weight: Parameter, eps: float, deals_for: Linear | None = None) -> Launch:
        weight_H, chained, deals = self._weights.vector(weight), self._chained, self._deals(deals_for)
        return lambda step, x, out: norm.rms_norm(x, weight_H, eps, out, deals=deals(len(x)), chained=chained)

    def _norm_queries_keys(self, queries: Parameter, keys: Parameter, eps: float, num_ranks: int, **_: int) -> Launch:
        """The first output is the input's memory."""
        vector, sums, chained = self._weights.vector, self._shared.sums, self._chained
        wide = WideNorm(vector(queries), vector(keys), eps, num_ranks, None if sums is None else sums.all_reduce)
        return lambda step, x, out, *means: wide.run(out, *means, chained=chained)

    def _add_rms_norm(self, weight: Parameter, eps: float, deals_for: Linear | None = None) -> Launch:
        """The outputs overwrite the inputs: the normed sum x, the sum the residual."""
        weight_H, chained, deals = self._weights.vector(weight), self._chained, self._deals(deals_for)

        def launch(
            step: DeviceStep, x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor, total: torch.Tensor
        ) -> None:
            norm.add_rms_norm(x, residual, weight_H, eps, out, deals=deals(len(x)), chained=chained)

        return launch

    def _layer_norm(self, weight: Parameter, bias: Parameter | None, eps: float) -> Launch:
        chained, weight_H = self._chained, self._weights.vector(weight)
        bias_H = None if bias is None else self._weights.vector(bias)
        return lambda step, x, out: norm.layer_norm(x, weight_H, bias_H, eps, out, chained=chained)

    def _gated_activation(self, kind: Activation, deals_for: Linear | None = None) -> Launch:
        chained, deals = self._chained, self._deals(deals_for)
        return lambda step, x, out: elementwise.gated_activation(x, kind, out, deals=deals(len(x)), chained=chained)

    def _gate_rows(self) -> Launch:
        return lambda step, x, gate, out: elementwise.gate_rows(x, gate, out, chained=self._chained)

    def _mixture(self, layer: Mixture, norm_weight: Parameter | None = None, eps: float = 1e-6) -> Launch:
        return MixtureLaunch(layer, norm_weight, eps, self._shared)

    def _mixture_add_rms_norm(self, layer: Mixture, norm_weight: Parameter, eps: float) -> Launch:
        """Outputs the normed sum, and the sum in the residual's memory."""
        return MixtureLaunch(layer, norm_weight, eps, self._shared).and_norm

    def _rotary_kv_write(self, layer: AttentionLayer) -> Launch:
        transform, chained = HeadTransform.of(layer, self._weights), self._chained
        memory = self._shared.memory
        slots, pools = memory.plan_of(layer).slots, memory.pools

        def launch(step: DeviceStep, qkv: torch.Tensor, q: torch.Tensor) -> None:
            pool, positions = pools[layer], step.positions
            rotary_kv_write(qkv, q, layer, pool, transform, slots=slots, positions=positions, chained=chained)

        return launch if not memory.has_codes else with_calibration(launch, memory, layer, transform)

    def _latent_kv_write(self, layer: AttentionLayer) -> Launch:
        return latent_write_launch(layer, self._shared)

    def _latent_values(self, layer: AttentionLayer) -> Launch:
        return latent_values_launch(layer, self._shared)

    def _paged_attention(self, layer: AttentionLayer) -> Launch:
        """In a step with chunks: one launch for the decoding sequences, another for the chunks."""
        decode, prefill = self._shared.attention.decode(layer), self._shared.attention.prefill(layer)

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            if step.kind.has_decodes:
                decode(step, q, out)
            if step.kind.has_chunks:
                prefill(step, q, out)

        return launch

    def _attention(self, layer: AttentionLayer, left_by: Linear | None = None) -> Launch:
        """left_by: the projection, which leaves its scales where it has many rows."""
        transform, decode = HeadTransform.of(layer, self._weights), self._shared.attention.decode
        whole = decode(layer, transform)
        if left_by is None:
            return whole
        product = self._kept_product(left_by)
        scaled = replace(transform, row_scales=product.scales, column_scales=product.weight.scales)
        unscaled = decode(layer, scaled)

        def launch(step: DeviceStep, qkv: torch.Tensor, out: torch.Tensor) -> None:
            (unscaled if product.leaves_scales(len(qkv)) else whole)(step, qkv, out)

        return launch
