"""Weights on the device: each is uploaded once, in the type that the model computes in.

dense       file, mapped ──> pinned, 32 MiB at a time ──> device ──> bfloat16, float16 or float32
quantised   made dense by its scheme, one tensor at a time, then the same way; or as it is, for kernels that take it
drawn       (load_format=dummy) on the device; never on the host
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.errors import UnsupportedModelError
from octavo.kernels.attention_layer import RotaryTable
from octavo.kernels.parameters import Parameter
from octavo.kernels.scaled import ScaledFormat, ScaledTensor
from octavo.kernels.tensor import HostTensor, RandomTensor, StoredTensor

if TYPE_CHECKING:
    from octavo.kernels.cuda.plain_codes import PlainCodes
    from octavo.kernels.cuda_cpp.quantized_weight import OrderedWeight, QuantizedWeight
    from octavo.kernels.triton.coded.weight_stack import WeightStack

_PIECE = 32 << 20
_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class DeviceWeights:
    """parameters: the uploaded ones, by name; the parts of a stacked matrix are views of it. dtype: of matrices and
    biases; norms and rotary angles are float32."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.parameters: dict[str, torch.Tensor] = {}
        self._stacks: dict[tuple[str, ...], torch.Tensor] = {}
        self._quantized: dict[tuple[str, ...], QuantizedWeight] = {}
        self._ordered: dict[tuple[str, ...], list[OrderedWeight]] = {}
        self._coded: dict[tuple[str, ...], WeightStack] = {}
        self._angles: dict[RotaryTable, tuple[torch.Tensor, torch.Tensor]] = {}
        self._angle_bytes = 0
        self._pinned = [torch.empty(_PIECE, dtype=torch.uint8, pin_memory=device.type == "cuda") for _ in range(2)]
        self._copied: list[torch.cuda.Event | None] = [None, None]

    def stacked(self, *parts: Parameter) -> torch.Tensor:
        """Matrices or biases, one below the other. Every caller must stack the same parts."""
        return self._upload(parts, self.dtype)

    def quantized(self, parts: tuple[Parameter, ...], form: ScaledFormat) -> QuantizedWeight:
        """The same of matrices in one format, which stay as they are; dense ones that are to be quantised as they are
        loaded are quantised here."""
        from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight

        names = tuple(part.name for part in parts)
        if names not in self._quantized:
            weight = QuantizedWeight.of([*self._codes(parts, form)], form, self.dtype)
            self._quantized[names] = weight
            self._name_parts(parts, weight)
        return self._quantized[names]

    def ordered(self, parts: tuple[Parameter, ...], form: ScaledFormat) -> list[OrderedWeight]:
        """The same of matrices whose inputs are sorted, one below the other."""
        from octavo.kernels.cuda_cpp.quantized_weight import OrderedWeight

        names = tuple(part.name for part in parts)
        if names not in self._ordered:
            found, begin = OrderedWeight.all_of([*self._codes(parts, form)], form, self.dtype), 0
            for weight, count in found:
                own, begin = parts[begin : begin + count], begin + count
                self._name_parts(own, weight.matrix)
            self._ordered[names] = [weight for weight, _ in found]
        return self._ordered[names]

    def _name_parts(self, parts: tuple[Parameter, ...], weight: QuantizedWeight) -> None:
        rows = [part.shape[0] * len(weight.data) // weight.columns for part in parts]
        self.parameters |= {part.name: view for part, view in zip(parts, weight.data.split(rows), strict=True)}

    def coded(self, parts: tuple[Parameter, ...], form: ScaledFormat) -> WeightStack:
        """The same for Triton's kernels."""
        from octavo.kernels.triton.coded.weight_stack import WeightStack

        names = tuple(part.name for part in parts)
        if names not in self._coded:
            shapes = [part.shape for part in parts]
            stack = WeightStack.coded(self._codes(parts, form), shapes, form, self.device)
            self._coded[names] = stack
            self.parameters |= dict(zip(names, stack.data.split([rows for rows, _ in shapes]), strict=True))
        return self._coded[names]

    def _codes(self, parts: tuple[Parameter, ...], form: ScaledFormat) -> Iterator[PlainCodes]:
        from octavo.kernels.cuda.block_codes import of_blocks
        from octavo.kernels.cuda.plain_codes import PlainCodes

        for part in parts:
            if len(part.sources) == 1 and part.sources[0].dtype in _DENSE:
                yield PlainCodes.quantise(self._as_stored(part.sources[0]), form)
            else:
                tensor = part.compact()
                try:
                    yield (
                        PlainCodes.of(tensor, self.device)
                        if isinstance(tensor, ScaledTensor)
                        else of_blocks(tensor, self.device)
                    )
                except UnsupportedModelError as error:
                    raise UnsupportedModelError(f"{part.sources[0].label}: {error}") from None

    def _as_stored(self, source: StoredTensor) -> torch.Tensor:
        """A dense matrix in its own type: its codes are those of the file's numbers."""
        matrix = torch.empty(source.shape, dtype=_DENSE[source.dtype], device=self.device)
        self._fill(matrix, source.read())
        return matrix

    def vector(self, parameter: Parameter) -> torch.Tensor:
        """A norm."""
        return self._upload((parameter,), torch.float32)

    def rotary(self, table: RotaryTable) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, shared by all layers with this table."""
        if table not in self._angles:
            cos, sin = (torch.tensor(array, device=self.device) for array in (table.cos, table.sin))
            self._angles[table] = cos, sin
            self._angle_bytes += cos.nbytes + sin.nbytes
        return self._angles[table]

    def _upload(self, parts: tuple[Parameter, ...], dtype: torch.dtype) -> torch.Tensor:
        names = tuple(part.name for part in parts)
        if names not in self._stacks:
            rows = [part.shape[0] for part in parts]
            whole = torch.empty((sum(rows), *parts[0].shape[1:]), dtype=dtype, device=self.device)
            for part, view in zip(parts, whole.split(rows), strict=True):
                self._fill(view, part.dense())
                self.parameters[part.name] = view
            self._stacks[names] = whole
        return self._stacks[names]

    @property
    def num_bytes(self) -> int:
        ordered = [weight for weights in self._ordered.values() for weight in weights]
        held: list[QuantizedWeight | WeightStack | OrderedWeight] = [*self._quantized.values(), *self._coded.values()]
        stacks = sum(whole.nbytes for whole in self._stacks.values())
        return self._angle_bytes + stacks + sum(each.num_bytes for each in [*held, *ordered])

    def forget_host(self) -> None:
        """Release the host's tensors and the upload buffers, after the last upload."""
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self._angles.clear()
        self._pinned.clear()

    def _fill(self, out: torch.Tensor, tensor: HostTensor) -> None:
        if isinstance(tensor, RandomTensor):
            generator = torch.Generator(self.device).manual_seed(tensor.seed)
            if (cut := tensor.cut_from) is None:
                out.normal_(0.0, tensor.std, generator=generator)
                return
            whole = torch.empty(cut.shape, dtype=out.dtype, device=self.device)
            whole.normal_(0.0, tensor.std, generator=generator)
            parts = [whole.narrow(cut.dimension, each.start, each.stop - each.start) for each in cut.slices]
            torch.cat(parts, cut.dimension, out=out)
        elif _DENSE[tensor.dtype] == out.dtype:
            self._copy(tensor.data, out.view(-1).view(torch.uint8))
        else:
            out.copy_(self._raw(tensor.data).view(_DENSE[tensor.dtype]).view(out.shape))

    def _raw(self, data: NDArray[np.uint8]) -> torch.Tensor:
        raw = torch.empty(data.nbytes, dtype=torch.uint8, device=self.device)
        self._copy(data, raw)
        return raw

    def _copy(self, data: NDArray[np.uint8], to: torch.Tensor) -> None:
        """Two pinned pieces take turns: one is filled while the other is copied."""
        for turn, start in enumerate(range(0, data.nbytes, _PIECE)):
            piece = data[start : start + _PIECE]
            pinned = self._pinned[turn % 2]
            if (event := self._copied[turn % 2]) is not None:
                event.synchronize()
            pinned.numpy()[: len(piece)] = piece
            to[start : start + len(piece)].copy_(pinned[: len(piece)], non_blocking=True)
            if self.device.type == "cuda":
                self._copied[turn % 2] = torch.cuda.current_stream().record_event()
