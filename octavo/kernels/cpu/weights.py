"""A model's weights as the cpu backend holds them, by name, and their conversion to a dense type.

embedding tables, norms, biases, angles   arrays that C++ borrows, views into the file if it stores them in that form
matrices                                  packed by C++ into its own copy; the originals are freed
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.attention_layer import AttentionLayer, ScoreBias
from octavo.kernels.cpu.adapters import CpuAdapters
from octavo.kernels.cpu.blocks import in_blocks
from octavo.kernels.cpu.library import LayerSpec, ThreadPool, address, check, load
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.reference.dequantize import convert as reference_convert
from octavo.kernels.reference.dequantize import values
from octavo.kernels.tensor import DENSE_DTYPES, DTYPES, DType, HostTensor, from_array, num_bytes
from octavo.observe.machine import num_cores

if TYPE_CHECKING:
    from octavo.distributed.placed_experts import PlacedExperts


@dataclass(frozen=True, slots=True)
class PackedRows:
    """A parameter's place in a packed matrix: its rows start at `first_row`. packed_with: all parts of the matrix."""

    dtype: DType
    shape: tuple[int, ...]
    first_row: int
    packed_with: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return num_bytes(self.dtype, self.shape)


class CpuWeights:
    """Reads parameters one by one as a program is built, and keeps alive what C++ borrows. specs: of each layer.
    adapters: the slots for them. placed: experts that change places, if any do."""

    def __init__(self, placed: PlacedExperts | None = None) -> None:
        self.placed = placed
        self.parameters: dict[str, HostTensor | PackedRows] = {}
        self.specs: dict[AttentionLayer, LayerSpec] = {}
        self.adapters = CpuAdapters()
        self._biases: dict[ScoreBias, int] = {}
        self._borrowed: list[NDArray[Any]] = []

    @property
    def num_bytes(self) -> int:
        """Of what C++ borrows, each array once, and of the slots of adapters."""
        held = (each for each in self.parameters.values() if isinstance(each, HostTensor))
        tables = (table.data for table in held if len(table.shape) > 1)
        borrowed = sum({address(array): array.nbytes for array in (*tables, *self._borrowed)}.values())
        return borrowed + self.adapters.num_bytes

    def table(self, parameter: Parameter) -> HostTensor:
        """The parameter in its own format, kept here."""
        tensor = self._read(parameter)
        self.parameters[parameter.name] = tensor
        return tensor

    def vector(self, *parts: Parameter) -> int | None:
        """The address of the joined parts in float32; None if there are no parts."""
        if not parts:
            return None
        read = [values(part) for part in parts]
        is_mapped = len(read) == 1 and self.placed is None  # a bias that changes places is overwritten
        joined = read[0] if is_mapped else np.concatenate(read)
        first = 0
        for part in parts:
            self.parameters[part.name] = from_array(joined[first : first + part.shape[0]])
            first += part.shape[0]
        return self.borrow(joined)

    def held(self, vector: Parameter) -> NDArray[np.uint8]:
        """The bytes of one that has been read."""
        held = self.parameters[vector.name]
        assert isinstance(held, HostTensor), "vectors are not packed"
        return held.data

    def bias(self, bias: ScoreBias) -> tuple[int, int]:
        """The address of the biases of all distances, [heads, distances], which all layers share; and how far they
        reach."""
        if bias not in self._biases:
            self.table(bias.table)
            self._biases[bias] = self.borrow(values(bias.table)[bias.buckets].T)
        return self._biases[bias], len(bias.buckets) // 2

    def borrow(self, array: NDArray[Any]) -> int:
        """The address of the array as contiguous float32, valid as long as this object."""
        self._borrowed.append(held := np.ascontiguousarray(array, np.float32))
        return address(held)

    def matrices(self, linear: Linear) -> Iterator[HostTensor]:
        """The matrices of a linear layer, each to be packed before the next is read. Neighbouring parts of one type
        become one matrix: fewer, larger products."""
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
        """An embedding table that is also the LM head has been read already."""
        held = self.parameters.get(parameter.name)
        if isinstance(held, HostTensor):
            return held
        read = parameter.compact()
        return read if isinstance(read, HostTensor) else in_blocks(read)


def convert(tensor: HostTensor, dtype: DType) -> HostTensor:
    """The tensor in a dense dtype, rounded to nearest even, or the tensor itself if it has that dtype. Raises
    OverflowError if a finite value does not fit float16."""
    assert dtype in DENSE_DTYPES, f"weights convert to {', '.join(sorted(DENSE_DTYPES))}, not to {dtype}"
    if tensor.dtype == dtype:
        return tensor
    library = load()
    pool = ThreadPool(library, num_cores())
    data = np.empty(num_bytes(dtype, tensor.shape), np.uint8)
    code = library.octavo_convert(
        pool.handle,
        DTYPES.index(tensor.dtype),
        address(tensor.data),
        tensor.row_bytes,
        tensor.rows,
        tensor.cols,
        DTYPES.index(dtype),
        address(data),
    )
    check(library, code, f"converting a {tensor.dtype} tensor to {dtype}")
    if dtype == "F16" and np.isinf(data.view(np.float16)).any():
        return reference_convert(tensor, dtype)  # tells overflow from values that were infinite before
    return HostTensor(dtype, tensor.shape, data)
