"""A model's weights as the cpu backend holds them, by their names.

embedding tables, norms, biases, angles   arrays that C++ borrows: views into the file where it has them so
matrices                                  packed by C++, which keeps a copy; what they were made from is let go
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.cpu.library import LayerSpec, address
from octavo.kernels.ops import AttentionLayer
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.reference.dequantize import values
from octavo.kernels.tensor import DType, HostTensor, from_array, num_bytes


@dataclass(frozen=True, slots=True)
class PackedRows:
    """A parameter inside a packed matrix: its rows there, from `first_row` on. packed_with: the matrix's parts."""

    dtype: DType
    shape: tuple[int, ...]
    first_row: int
    packed_with: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """As the file has them."""
        return num_bytes(self.dtype, self.shape)


class CpuWeights:
    def __init__(self) -> None:
        self.parameters: dict[str, HostTensor | PackedRows] = {}
        self.specs: dict[AttentionLayer, LayerSpec] = {}
        self._borrowed: list[NDArray[Any]] = []

    def table(self, parameter: Parameter) -> HostTensor:
        """In its own format, and here to stay."""
        tensor = self._read(parameter)
        self.parameters[parameter.name] = tensor
        return tensor

    def vector(self, *parts: Parameter) -> int | None:
        """The address of the parts joined, float32; None if there are none."""
        if not parts:
            return None
        read = [values(part) for part in parts]
        joined = read[0] if len(read) == 1 else np.concatenate(read)
        first = 0
        for part in parts:
            self.parameters[part.name] = from_array(joined[first : first + part.shape[0]])
            first += part.shape[0]
        return self.borrow(joined)

    def borrow(self, array: NDArray[Any]) -> int:
        """The array's address, as contiguous float32, valid as long as this object."""
        self._borrowed.append(held := np.ascontiguousarray(array, np.float32))
        return address(held)

    def matrices(self, linear: Linear) -> Iterator[HostTensor]:
        """To be packed at once. Neighbouring parts of one type become one matrix: fewer, larger products."""
        read = [(part.name, self._read(part)) for part in linear.parts]
        for dtype, group in groupby(read, key=lambda named: named[1].dtype):
            names, tensors = zip(*group, strict=True)
            rows = 0
            for name, tensor in zip(names, tensors, strict=True):
                self.parameters.setdefault(name, PackedRows(dtype, tensor.shape, rows, names))
                rows += tensor.rows
            data = tensors[0].data if len(tensors) == 1 else np.concatenate([tensor.data for tensor in tensors])
            yield HostTensor(dtype, (rows, linear.in_features), data)

    def _read(self, parameter: Parameter) -> HostTensor:
        """An embedding table that is also the head is here already."""
        held = self.parameters.get(parameter.name)
        return held if isinstance(held, HostTensor) else parameter.compact()
