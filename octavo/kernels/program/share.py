"""A recorded model as one of several ranks computes it: parameters cut by their shard rules, ops on narrower tensors.

    q, k, v [ heads 0-3 | heads 4-7 ]   gate, up [ columns | columns ]   o, down [ rows ]   norms: whole on each rank

The instructions are recorded again with the cut parameters, so every width follows from the ops' shape rules. It serves
plans, which read shapes and types but no numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from octavo.kernels.ops import OPS, AttentionLayer, Model
from octavo.kernels.parameters import REPLICATED, Linear, Parameter, Shape, Shard
from octavo.kernels.program.recorder import Recorder, Recording, Value, record, record_model
from octavo.kernels.tensor import HostTensor, StoredTensor


@dataclass(frozen=True, slots=True, eq=False)
class ModelRecording:
    """A model in the parts that devices bind: the pass to the hidden states, the rest of it, and both in one."""

    body: Recording
    head: Recording
    whole: Recording

    @classmethod
    def of(cls, model: Model) -> ModelRecording:
        body, heads = record_model(model)
        return cls(body, heads["logits"], record(lambda ops: model.heads["logits"](ops, *model.body(ops))))

    def share(self, rank: int, num_ranks: int) -> ModelRecording:
        if num_ranks == 1:
            return self
        return _Share(rank, num_ranks).model(self)


def can_share(num_heads: int, num_kv_heads: int, num_ranks: int) -> bool:
    """Whether each rank gets whole heads: as many as others, with the KV heads that they read."""
    shares_kv = num_kv_heads % num_ranks == 0 or num_ranks % num_kv_heads == 0
    return num_heads % num_ranks == 0 and shares_kv


class _Share:
    def __init__(self, rank: int, num_ranks: int) -> None:
        self._rank, self._num_ranks = rank, num_ranks
        self._layers: dict[AttentionLayer, AttentionLayer] = {}

    def model(self, whole: ModelRecording) -> ModelRecording:
        body = self._recording(whole.body, [])
        widths = [value.width for value in body.kept]
        return ModelRecording(body, self._recording(whole.head, widths), self._recording(whole.whole, []))

    def _recording(self, whole: Recording, given_widths: list[int]) -> Recording:
        recorder = Recorder()
        given = tuple(map(recorder.new_value, given_widths))
        values: dict[Value, Value] = dict(zip(whole.given, given, strict=True))
        for instruction in whole.instructions:
            arguments = {name: self._share(argument) for name, argument in instruction.arguments.items()}
            inputs = tuple(values[value] for value in instruction.inputs)
            result = recorder.apply(OPS[instruction.op], inputs, arguments)
            values.update(zip(instruction.outputs, result if isinstance(result, tuple) else (result,), strict=True))
        return Recording(recorder.instructions, tuple(values[value] for value in whole.kept), given)

    def _share(self, argument: Any) -> Any:
        """An op's argument as this rank has it."""
        if isinstance(argument, Parameter):
            return self._parameter(argument)
        if isinstance(argument, Linear):
            return Linear(*(tuple(map(self._parameter, parts)) for parts in (argument.parts, argument.biases)))
        if isinstance(argument, AttentionLayer):
            return self._layers.setdefault(argument, self._layer(argument))
        return argument

    def _parameter(self, whole: Parameter) -> Parameter:
        sources = tuple(self._stored(source, whole.shard) for source in whole.sources)
        return replace(whole, shape=self._shape(whole.shape, whole.shard), sources=sources, shard=REPLICATED)

    def _stored(self, whole: StoredTensor, shard: Shard) -> StoredTensor:
        return StoredTensor(whole.dtype, self._shape(whole.shape, shard), _unread)

    def _layer(self, whole: AttentionLayer) -> AttentionLayer:
        heads, kv_heads = (
            self._shape((number,), Shard.heads(whole.num_heads, number))[0]
            for number in (whole.num_heads, whole.num_kv_heads)
        )
        return replace(whole, num_heads=heads, num_kv_heads=kv_heads)

    def _shape(self, whole: Shape, shard: Shard) -> Shape:
        dimension, slices = shard.slices(whole, self._rank, self._num_ranks)
        part = sum(one.stop - one.start for one in slices)
        return (*whole[:dimension], part, *whole[dimension + 1 :])


def _unread() -> HostTensor:
    raise AssertionError("a plan reads no numbers")
