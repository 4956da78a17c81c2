"""Ops that compute nothing and check everything a recording backend relies on.

A value is only a width and whether it still lives. Each call checks the widths it is given against the weights,
refuses values that an earlier call declared dead, and writes down its name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from octavo.kernels.ops import Activation, AttentionLayer, FloatArray, Index, LinearWeight
from octavo.kernels.tensor import DType, HostTensor, num_bytes


@dataclass(eq=False)
class Symbol:
    width: int
    is_dead: bool = False


class SymbolicOps:
    """Implements `octavo.kernels.ops.Ops` on Symbols."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.written: list[tuple[int, int]] = []
        self.read: list[tuple[int, int]] = []

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.calls)

    def embedding(self, table: HostTensor, index: Index, *, offset: int = 0, scale: float = 1.0) -> Symbol:
        return self._result("embedding", table.cols)

    def linear(self, x: Symbol, weight: LinearWeight) -> Symbol:
        assert self._use(x) == weight.in_features
        assert all(part.cols == weight.in_features for part in weight.parts)
        assert weight.bias is None or weight.bias.shape == (weight.out_features,)
        return self._result("linear", weight.out_features)

    def rms_norm(self, x: Symbol, weight: FloatArray, eps: float) -> Symbol:
        assert weight.shape == (self._use(x),)
        return self._result("rms_norm", x.width)

    def add_rms_norm(self, x: Symbol, residual: Symbol, weight: FloatArray, eps: float) -> tuple[Symbol, Symbol]:
        assert weight.shape == (self._consume(x),) == (self._consume(residual),)
        return self._result("add_rms_norm", x.width), Symbol(x.width)

    def layer_norm(self, x: Symbol, weight: FloatArray, bias: FloatArray | None, eps: float) -> Symbol:
        assert weight.shape == (self._use(x),)
        assert bias is None or bias.shape == weight.shape
        return self._result("layer_norm", x.width)

    def add(self, x: Symbol, y: Symbol) -> Symbol:
        assert self._consume(x) == self._consume(y)
        return self._result("add", x.width)

    def activation(self, x: Symbol, kind: Activation) -> Symbol:
        return self._result("activation", self._consume(x))

    def gated_activation(self, gate_up: Symbol, kind: Activation) -> Symbol:
        width = self._use(gate_up)
        assert width % 2 == 0
        return self._result("gated_activation", width // 2)

    def rotary_kv_write(self, qkv: Symbol, layer: AttentionLayer) -> Symbol:
        assert self._consume(qkv) == (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim
        assert layer.rotary is None or layer.rotary.rotary_dim <= layer.head_dim
        self.written.append((layer.group, layer.index_in_group))
        return self._result("rotary_kv_write", layer.num_heads * layer.head_dim)

    def paged_attention(self, q: Symbol, layer: AttentionLayer) -> Symbol:
        assert self._use(q) == layer.num_heads * layer.head_dim
        self.read.append((layer.group, layer.index_in_group))
        return self._result("paged_attention", q.width)

    def softcap(self, x: Symbol, cap: float) -> Symbol:
        return self._result("softcap", self._consume(x))

    def _result(self, name: str, width: int) -> Symbol:
        self.calls.append(name)
        return Symbol(width)

    @staticmethod
    def _use(x: Symbol) -> int:
        assert isinstance(x, Symbol), "values between calls are the backend's own"
        assert not x.is_dead, "a value is used after the call that ended it"
        return x.width

    def _consume(self, x: Symbol) -> int:
        width = self._use(x)
        x.is_dead = True
        return width


class BlankTensors:
    """A checkpoint that has every tensor, all zeros and none in memory: one byte stands for them all."""

    def __init__(self, dtype: DType = "F32") -> None:
        self._dtype = dtype
        self.taken: dict[str, tuple[int, ...]] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> HostTensor:
        assert name not in self.taken, f"{name} is taken once and shared"
        self.taken[name] = shape
        if len(shape) == 1:
            return HostTensor("F32", shape, np.zeros(num_bytes("F32", shape), np.uint8))
        return HostTensor(self._dtype, shape, np.broadcast_to(np.uint8(0), (num_bytes(self._dtype, shape),)))
