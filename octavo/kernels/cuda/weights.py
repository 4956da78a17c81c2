"""Weights on the device: each uploaded once, in the type that the model computes in.

file, mapped ──> pinned, 32 MiB at a time ──> device ──> bfloat16, float16 or float32
block-quantised: dequantised on the way, a tensor at a time
drawn (load_format=dummy): never on the host at all
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.kernels.ops import FloatArray, RotaryTable
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import HostTensor, RandomTensor

_PIECE = 32 << 20
_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class DeviceWeights:
    """A model's weights by the identity of what the host has. `dtype` is that of matrices and biases; norms and
    rotary angles are float32."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        # The key's object is kept with its value: an id is only unique while its object lives.
        self._held: dict[Hashable, tuple[object, torch.Tensor]] = {}
        self._pinned = [torch.empty(_PIECE, dtype=torch.uint8, pin_memory=device.type == "cuda") for _ in range(2)]
        self._copied: list[torch.cuda.Event | None] = [None, None]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for _, tensor in self._held.values())

    def matrix(self, *parts: HostTensor) -> torch.Tensor:
        """[sum of rows, cols]: the parts, one below the other."""
        key = tuple(id(part) for part in parts)
        if key not in self._held:
            rows = sum(part.rows for part in parts)
            whole = torch.empty((rows, parts[0].cols), dtype=self.dtype, device=self.device)
            first = 0
            for part in parts:
                self._fill(whole[first : first + part.rows], part)
                first += part.rows
            self._held[key] = (parts, whole)
        return self._held[key][1]

    def vector(self, array: FloatArray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A norm, a bias or angles."""
        key = (id(array), dtype)
        if key not in self._held:
            self._held[key] = (array, torch.tensor(array, dtype=dtype, device=self.device))
        return self._held[key][1]

    def rotary(self, table: RotaryTable) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, shared by all layers with this table."""
        return self.vector(table.cos), self.vector(table.sin)

    def forget_host(self) -> None:
        """Let go of the host's tensors and of the upload buffers: everything is uploaded."""
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self._held = {index: (None, tensor) for index, (_, tensor) in enumerate(self._held.values())}
        self._pinned.clear()

    def _fill(self, out: torch.Tensor, tensor: HostTensor) -> None:
        if isinstance(tensor, RandomTensor):
            generator = torch.Generator(self.device).manual_seed(tensor.seed)
            out.normal_(0.0, tensor.std, generator=generator)
        elif not tensor.is_dense:
            values = dequantize(tensor)
            out.copy_(self._raw(values.reshape(-1).view(np.uint8)).view(torch.float32).view(out.shape))
        elif _DENSE[tensor.dtype] == out.dtype:
            self._copy(tensor.data, out.view(-1).view(torch.uint8))
        else:
            out.copy_(self._raw(tensor.data).view(_DENSE[tensor.dtype]).view(out.shape))

    def _raw(self, data: NDArray[np.uint8]) -> torch.Tensor:
        raw = torch.empty(data.nbytes, dtype=torch.uint8, device=self.device)
        self._copy(data, raw)
        return raw

    def _copy(self, data: NDArray[np.uint8], to: torch.Tensor) -> None:
        """Two pinned pieces take turns: one is filled while the other is on its way."""
        for turn, start in enumerate(range(0, data.nbytes, _PIECE)):
            piece = data[start : start + _PIECE]
            pinned = self._pinned[turn % 2]
            if (event := self._copied[turn % 2]) is not None:
                event.synchronize()
            pinned.numpy()[: len(piece)] = piece
            to[start : start + len(piece)].copy_(pinned[: len(piece)], non_blocking=True)
            if self.device.type == "cuda":
                self._copied[turn % 2] = torch.cuda.current_stream().record_event()
