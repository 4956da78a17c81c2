"""Recorder: an `Ops` that writes down what a model's forward pass calls.

Its tensors are `Value`s: a width and the storage they live in. Nothing is computed. The list of
instructions it leaves is what `buffers.py` shares memory out for, and what a backend turns into calls: one into
C++ for the whole step, or a launch each on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from octavo.kernels.ops import Activation, AttentionLayer, FloatArray, Index, LinearWeight
from octavo.kernels.tensor import HostTensor

#: the C++ enums' order
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
INDICES: tuple[Index, ...] = get_args(Index)
#: ops whose arguments are dead afterwards; their results are written over them
CONSUMING_OPS = frozenset({"add_rms_norm", "add", "activation", "rotary_kv_write", "softcap"})


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A [T, width] tensor: the first `width` columns of its storage. `storage` is a number the recorder gives
    out; two values share one where the second is written over the first, or is part of it."""

    width: int
    storage: int
    stride: int


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One call: op name as in `Ops`, tensors in, tensors out, and everything else by the op's own names."""

    op: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    arguments: dict[str, Any] = field(default_factory=dict)


class Recorder:
    """Implements `octavo.kernels.ops.Ops`."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self._num_storages = 0
        self._dead: set[Value] = set()

    def new_value(self, width: int) -> Value:
        self._num_storages += 1
        return Value(width, self._num_storages - 1, width)

    def embedding(self, table: HostTensor, index: Index, *, offset: int = 0, scale: float = 1.0) -> Value:
        out = self.new_value(table.cols)
        return self._record("embedding", (), (out,), table=table, index=index, offset=offset, scale=scale)[0]

    def linear(self, x: Value, weight: LinearWeight) -> Value:
        assert x.width == weight.in_features, f"linear of {weight.in_features} columns on a tensor of {x.width}"
        return self._record("linear", (x,), (self.new_value(weight.out_features),), weight=weight)[0]

    def rms_norm(self, x: Value, weight: FloatArray, eps: float) -> Value:
        return self._record("rms_norm", (x,), (self.new_value(x.width),), weight=weight, eps=eps)[0]

    def add_rms_norm(self, x: Value, residual: Value, weight: FloatArray, eps: float) -> tuple[Value, Value]:
        assert x.width == residual.width, f"add_rms_norm of widths {x.width} and {residual.width}"
        written = (_over(x), _over(residual))
        out, total = self._record("add_rms_norm", (x, residual), written, weight=weight, eps=eps)
        return out, total

    def layer_norm(self, x: Value, weight: FloatArray, bias: FloatArray | None, eps: float) -> Value:
        return self._record("layer_norm", (x,), (self.new_value(x.width),), weight=weight, bias=bias, eps=eps)[0]

    def add(self, x: Value, y: Value) -> Value:
        assert x.width == y.width, f"add of widths {x.width} and {y.width}"
        return self._record("add", (x, y), (_over(x),))[0]

    def activation(self, x: Value, kind: Activation) -> Value:
        return self._record("activation", (x,), (_over(x),), kind=kind)[0]

    def gated_activation(self, gate_up: Value, kind: Activation) -> Value:
        assert gate_up.width % 2 == 0, f"a gate and its values halve the columns, got {gate_up.width}"
        return self._record("gated_activation", (gate_up,), (self.new_value(gate_up.width // 2),), kind=kind)[0]

    def rotary_kv_write(self, qkv: Value, layer: AttentionLayer) -> Value:
        heads = layer.num_heads + 2 * layer.num_kv_heads
        assert qkv.width == heads * layer.head_dim, f"q, k and v of {heads} heads in a tensor of {qkv.width} columns"
        q = Value(layer.num_heads * layer.head_dim, qkv.storage, qkv.stride)  # its first columns, where they are
        return self._record("rotary_kv_write", (qkv,), (q,), layer=layer)[0]

    def paged_attention(self, q: Value, layer: AttentionLayer) -> Value:
        return self._record("paged_attention", (q,), (self.new_value(q.width),), layer=layer)[0]

    def softcap(self, x: Value, cap: float) -> Value:
        return self._record("softcap", (x,), (_over(x),), cap=cap)[0]

    def _record(
        self, op: str, inputs: tuple[Value, ...], outputs: tuple[Value, ...], **arguments: Any
    ) -> tuple[Value, ...]:
        for value in inputs:
            assert value not in self._dead, f"{op} reads a tensor that an earlier op consumed (see Ops)"
        if op in CONSUMING_OPS:
            self._dead.update(inputs)
        self.instructions.append(Instruction(op, inputs, outputs, arguments))
        return outputs


def _over(value: Value) -> Value:
    """A new tensor written over one that dies."""
    return Value(value.width, value.storage, value.stride)
