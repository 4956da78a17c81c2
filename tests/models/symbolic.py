"""A backend and a checkpoint for tests of models: nothing is computed, and weights take no memory."""

from __future__ import annotations

from collections import Counter

import numpy as np

from octavo.kernels.program.recorder import Recorder
from octavo.kernels.tensor import DType, HostTensor, StoredTensor, at_hand, from_array, num_bytes


class SymbolicOps(Recorder):
    """A recorder, which checks each call, and its recording as text."""

    @property
    def calls(self) -> list[str]:
        return [instruction.op for instruction in self.instructions]

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.calls)

    @property
    def written(self) -> list[tuple[int, int]]:
        return self._layers("rotary_kv_write", "latent_kv_write")

    @property
    def read(self) -> list[tuple[int, int]]:
        return self._layers("paged_attention")

    def _layers(self, *ops: str) -> list[tuple[int, int]]:
        """The cache group, and the index in it, of every layer that one of the ops was called for."""
        layers = [i.arguments["layer"] for i in self.instructions if i.op in ops]
        return [(layer.group, layer.index_in_group) for layer in layers]


class BlankTensors:
    """A checkpoint with every tensor, all zeros; they share one byte of memory."""

    def __init__(self, dtype: DType = "F32") -> None:
        self._dtype = dtype
        self.taken: dict[str, tuple[int, ...]] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        assert name not in self.taken, f"{name} is taken once and shared"
        self.taken[name] = shape
        if len(shape) == 1:
            return at_hand(HostTensor("F32", shape, np.zeros(num_bytes("F32", shape), np.uint8)))
        return at_hand(HostTensor(self._dtype, shape, np.broadcast_to(np.uint8(0), (num_bytes(self._dtype, shape),))))


class DrawnTensors:
    """A checkpoint of random numbers, the same for a name each time; matrices in `dtype`, vectors in float32."""

    def __init__(self, dtype: DType = "F32") -> None:
        self._dtype = dtype

    def take(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        return at_hand(self.read(name, shape))

    def read(self, name: str, shape: tuple[int, ...]) -> HostTensor:
        rng = np.random.default_rng(list(name.encode()))
        if self._dtype == "F32" or len(shape) == 1:
            return from_array(rng.standard_normal(shape, np.float32))
        assert self._dtype == "Q8_0", "a block is a scale and 32 bytes"
        blocks = rng.integers(0, 256, (num_bytes(self._dtype, shape) // 34, 34), np.uint8)
        blocks[:, :2] = np.array([0.01], np.float16).view(np.uint8)
        return HostTensor(self._dtype, shape, blocks.reshape(-1))
