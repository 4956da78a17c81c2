"""AdaptedModel: a model whose products and embedding may be changed by an adapter, another one for each token.

    the model calls    ops.linear(x, weight)
    what is recorded   linear(x, weight) -> y;  add_adapters(y, x, module)

The model's own code knows nothing of adapters, and a model that is not wrapped records no such op.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from octavo.kernels.adapters import AdaptedModule, AdaptedPart, AdapterSizes, AdapterTarget, Slices
from octavo.kernels.model import Head, Model
from octavo.kernels.op import Op
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear, Parameter, Shape
from octavo.kernels.program.recorder import record_model

#: modules by what a model's ops read
Modules = Mapping[Linear | Parameter, AdaptedModule]


class AdaptedModel:
    """Implements `octavo.kernels.model.Model`."""

    def __init__(self, model: Model, modules: Modules) -> None:
        self._model, self.modules = model, modules

    @property
    def inputs(self) -> Mapping[str, int]:
        return self._model.inputs

    @property
    def heads(self) -> dict[str, Head]:
        return {name: partial(self._run, head) for name, head in self._model.heads.items()}

    def body(self, ops: Ops, *hidden_states: Tensor) -> Any:
        return self._run(self._model.body, ops, *hidden_states)

    def _run(self, function: Any, ops: Ops, *hidden: Tensor) -> Any:
        return function(AdaptedOps(ops, self.modules), *hidden)


class AdaptedOps(Ops):
    """Other ops, with adapters behind those that multiply by a module's matrices."""

    def __init__(self, ops: Ops, modules: Modules) -> None:
        self._ops, self._modules = ops, modules

    def apply(self, op: Op, inputs: tuple[Tensor, ...], arguments: dict[str, Any]) -> Any:
        result = self._ops.apply(op, inputs, arguments)
        if op.name == "linear" and (module := self._modules.get(arguments["weight"])) is not None:
            return self._ops.add_adapters(result, inputs[0], module)
        if op.name == "embedding" and (module := self._modules.get(arguments["table"])) is not None:
            return self._ops.add_table_adapters(result, module, arguments["offset"])
        return result


def adapt(
    model: Model, shapes: Mapping[str, Shape], sizes: AdapterSizes, rank: int = 0, num_ranks: int = 1
) -> AdaptedModel:
    """shapes: of every parameter of the whole model, by name."""
    return AdaptedModel(model, dict(_modules(model, shapes, sizes, rank, num_ranks)))


def targets(model: AdaptedModel) -> tuple[AdapterTarget, ...]:
    """What an adapter of the whole model may change."""
    modules = model.modules.values()
    return tuple(AdapterTarget(part.name, part.shape, module.is_table) for module in modules for part in module.parts)


def _modules(
    model: Model, shapes: Mapping[str, Shape], sizes: AdapterSizes, rank: int, num_ranks: int
) -> Iterator[tuple[Linear | Parameter, AdaptedModule]]:
    """Of every product outside a layer of experts, and of the embedding of tokens. A head that shares the embedding's
    numbers is a module of its own."""

    def part(parameter: Parameter, name: str) -> AdaptedPart:
        shape = shapes[parameter.name]
        dimension, slices = parameter.shard.slices(shape, rank, num_ranks)
        is_part = parameter.first is not None
        cuts: list[Slices | None] = [slices if is_part and dimension == each else None for each in (0, 1)]
        return AdaptedPart(name, shape, *cuts)

    body, heads = record_model(model)
    instructions = [each for recording in (body, *heads.values()) for each in recording.instructions]
    tables = {each.arguments["table"] for each in instructions if each.op == "embedding"}
    for table in tables:
        if any(each.arguments["index"] == "input_ids" for each in instructions if each.arguments.get("table") is table):
            yield table, AdaptedModule((_transposed(part(table, _module_name(table))),), sizes, is_table=True)
    for weight in dict.fromkeys(each.arguments["weight"] for each in instructions if each.op == "linear"):
        parts = [part(each, "lm_head" if _is_table(each) else _module_name(each)) for each in weight.parts]
        yield weight, AdaptedModule(tuple(parts), sizes)


def _is_table(parameter: Parameter) -> bool:
    """Whether a head shares its numbers with the embedding, which another stage of a pipeline may have."""
    return _module_name(parameter).rsplit(".", 1)[-1] in ("embed_tokens", "wte")


def _module_name(parameter: Parameter) -> str:
    return parameter.name.removesuffix(".weight")


def _transposed(part: AdaptedPart) -> AdaptedPart:
    """A table [V, H] as a matrix [H, V]."""
    return AdaptedPart(part.name, part.shape[::-1], part.inputs, part.outputs)
