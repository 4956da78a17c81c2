"""Op: the declaration of one op, read from its method of `Ops`; and Result, what its shape rule says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

_Method = TypeVar("_Method", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Result:
    """A result of an op: its number of columns, and the input, a Tensor, whose first columns it overwrites, or None."""

    width: int
    within: Any = None


def over(x: Any) -> Result:
    return Result(x.width, within=x)


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One op, as `Ops` declares it.

    inputs: its tensors, in order. consumed: those that are dead afterwards. kinds: its parameters, in order, with their
    annotations. error: the largest relative difference from the reference with float32 activations. is_elementwise:
    each element of the result depends only on the inputs' elements at the same place. results: the shape rule.
    """

    name: str
    inputs: tuple[str, ...]
    consumed: frozenset[str]
    kinds: Mapping[str, str]
    defaults: Mapping[str, Any]
    error: float
    is_elementwise: bool
    results: Callable[..., Any]

    @classmethod
    def of(cls, rule: Callable[..., Any], error: float, *, is_elementwise: bool) -> Op:
        """As the method `rule` of `Ops` declares it: its signature, and as its body the shape rule."""
        parameters = list(inspect.signature(rule).parameters.values())[1:]
        inputs = {each.name: each.annotation for each in parameters if each.annotation in ("Tensor", "Consumed")}
        return cls(
            name=rule.__name__,
            inputs=tuple(inputs),
            consumed=frozenset(name for name, annotation in inputs.items() if annotation == "Consumed"),
            kinds={each.name: each.annotation for each in parameters if each.name not in inputs},
            defaults={each.name: each.default for each in parameters if each.default is not each.empty},
            error=error,
            is_elementwise=is_elementwise,
            results=rule,
        )

    def arguments(self, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call's tensors, and its parameters by name."""
        values = {**self.defaults, **dict(zip((*self.inputs, *self.kinds), given, strict=False)), **named}
        return tuple(values[name] for name in self.inputs), {name: values[name] for name in self.kinds}


def op(*, error: float, elementwise: bool = False) -> Callable[[_Method], _Method]:
    """Declare an op by a method of `Ops`: its signature, and as its body the shape rule."""

    def declare(rule: _Method) -> _Method:
        declared = Op.of(rule, error, is_elementwise=elementwise)

        @wraps(rule)
        def call(self: Any, *given: Any, **named: Any) -> Any:
            return self.apply(declared, *declared.arguments(given, named))

        vars(call)["op"] = declared
        return cast(_Method, call)

    return declare


def declared_by(ops: type) -> dict[str, Op]:
    """Every op of a class by name, in the order of its methods."""
    return {name: method.op for name, method in vars(ops).items() if hasattr(method, "op")}
