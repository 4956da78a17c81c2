"""Random weights for a model without a checkpoint: for benchmarks, plans and studies.

Activations stay near size one from layer to layer: a matrix has standard deviation 1/sqrt(columns), at most 0.02; norm
weights are one (as the family stores it), biases zero. Each tensor has its own generator, seeded by the model's seed
and the tensor's name, so the order of drawing does not matter. A backend with its own memory draws matrices there; the
numbers differ from the host's, but are the same in every run. On the host, drawing an 8B model's sixteen gigabytes
would take minutes, so a large tensor repeats one run of 2^20 elements, each time rotated by a different amount.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod

import numpy as np

from octavo.kernels.parameters import Shape
from octavo.kernels.reference.dequantize import convert
from octavo.kernels.tensor import BLOCK_FORMATS, DType, HostTensor, RandomTensor, StoredTensor, from_array, num_bytes
from octavo.models.architecture import Architecture

_RUN_LEN = 1 << 20
_LARGEST_STD = 0.02


def dummy_tensors(
    architecture: Architecture, required: Mapping[str, Shape], dtype: DType, seed: int, *, on_device: bool = False
) -> dict[str, StoredTensor]:
    """Every tensor of the table, drawn when it is read. on_device: the backend draws the matrices."""

    def read(name: str, shape: Shape) -> HostTensor:
        if on_device and len(shape) > 1:
            return RandomTensor.undrawn(dtype, shape, _tensor_seed(seed, name), _std(shape))
        return draw_tensor(architecture, name, shape, dtype, seed)

    def one(name: str, shape: Shape) -> StoredTensor:
        return StoredTensor(dtype, shape, lambda: read(name, shape))

    return {name: one(name, shape) for name, shape in required.items()}


def draw_tensor(architecture: Architecture, name: str, shape: Shape, dtype: DType, seed: int) -> HostTensor:
    if len(shape) == 1:  # such weights are norms'; Gemma stores them as the difference from one
        value = 1.0 if name.endswith(".weight") and not architecture.family.startswith("gemma") else 0.0
        return convert(from_array(np.full(shape, value, np.float32)), dtype)
    generator = np.random.default_rng(_tensor_seed(seed, name))
    run = generator.standard_normal(min(prod(shape), _RUN_LEN), dtype=np.float32)
    run *= _std(shape)
    return HostTensor(dtype, shape, _repeated(convert(from_array(run), dtype), num_bytes(dtype, shape), generator))


def _std(shape: Shape) -> float:
    return min(_LARGEST_STD, float(shape[-1] ** -0.5))


def _tensor_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), "little")


def _repeated(run: HostTensor, size: int, generator: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The run's bytes, repeated up to `size` bytes; each repeat starts at a random element."""
    _, element_bytes = BLOCK_FORMATS[run.dtype]
    doubled = np.concatenate([run.data, run.data])
    data = np.empty(size, np.uint8)
    for start in range(0, size, run.data.nbytes):
        turn = int(generator.integers(run.cols)) * element_bytes if start else 0
        part = data[start : start + run.data.nbytes]
        part[:] = doubled[turn : turn + len(part)]
    return data
