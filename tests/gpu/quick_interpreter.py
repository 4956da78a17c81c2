"""Triton's interpreter without the work that it does over and over: the same results in a third of the time.

For each call of a function in a kernel it patches triton.language anew, though the kernel's launch has just done so,
and each launch looks through all of triton.language for what it patches. It computes whether integers overflow, and
drops the finding unless asserts are on. For each value it builds a table of all types, and for each tensor it makes the
same shape and type again. It compares shapes number by number, each wrapped and unwrapped. Of each number beside a
tensor it makes a scalar, twice, and of that a tensor; of each pair of operands it looks for the type of the result.

And one thing differently: on some CPUs NumPy's library multiplies a row of float32 by another kernel in another place,
so a row's result would depend on the others, which no GPU's does. Products are added up in float64, then rounded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

_MOST_KNOWN = 10_000  # numbers that are kept as tensors, of each type and shape that they met


def quicken() -> None:
    """Do these things once. Of Triton 3.7, whose insides these are: others stay as slow as they are."""
    import triton
    from triton.language import core, semantic
    from triton.runtime import interpreter

    if not triton.__version__.startswith("3.7."):
        return
    interpreter._patch_lang = _once_a_launch(interpreter._patch_lang, {core, interpreter.tl})
    interpreter._get_np_dtype = _once_a_type(interpreter._get_np_dtype)
    semantic.TritonSemantic.binary_op_sanitize_overflow_impl = _if_asserts_are_on(
        semantic.TritonSemantic.binary_op_sanitize_overflow_impl
    )
    interpreter._patch_builtin = _found_once(interpreter.interpreter_semantic, core.is_builtin)
    semantic.TritonSemantic.broadcast_impl_value = _to_one_shape(core, interpreter)
    semantic.TritonSemantic.binary_op_type_checking_impl = _with_known_operands(
        semantic.TritonSemantic.binary_op_type_checking_impl, core
    )
    core._unwrap_if_constexpr = _only_what_wraps(core)
    core.dtype.__eq__ = _by_name(core.dtype)
    core.block_type.__eq__ = _by_name(core.block_type)
    core.block_type.__init__ = _once_a_shape(core)
    core.tensor.__init__ = _with_shapes_of(core)
    interpreter.InterpreterBuilder.create_dot = _alike_for_each_row(interpreter)


def _alike_for_each_row(interpreter: Any) -> Callable[..., Any]:
    make = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *how: Any) -> Any:
        if not a.data.dtype == b.data.dtype == d.data.dtype == np.float32:
            return make(self, a, b, d, *how)
        product = np.matmul(a.data, b.data, dtype=np.float64).astype(np.float32)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    return create_dot


def _once_a_launch(patch: Callable[[Any], Any], languages: set[Any]) -> Callable[[Any], Any]:
    """A launch patches the modules that its kernel sees, and restores them when it ends."""
    patched: set[Any] = set()
    visible_from: dict[int, set[Any]] = {}  # by the module of a function

    def patch_what_is_new(fn: Any) -> Any:
        visible = visible_from.get(id(fn.__globals__))
        if visible is None:
            seen = {id(one) for one in fn.__globals__.values()}
            visible = visible_from[id(fn.__globals__)] = {one for one in languages if id(one) in seen}
        if visible and visible <= patched:
            return None  # from a call, which never restores
        scope = patch(fn)
        patched.update(visible)
        restore = scope.restore

        def restore_all() -> None:
            patched.clear()
            restore()

        scope.restore = restore_all
        return scope

    return patch_what_is_new


def _found_once(semantic: Any, is_builtin: Callable[[Any], bool]) -> Callable[..., None]:
    members: dict[Any, list[tuple[str, Any]]] = {}

    def interpreted(member: Any) -> Callable[..., Any]:
        """The function below the check that it was given a semantic."""
        plain = getattr(member, "__wrapped__", member)

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return plain(*args, **kwargs)

        return call

    def patch_all(package: Any, builder: Any, scope: Any) -> None:
        if package not in members:
            found = [(name, one) for name, one in inspect.getmembers(package) if is_builtin(one)]
            members[package] = [(name, interpreted(one)) for name, one in found]
        for name, call in members[package]:
            scope.set_attr(package, name, call)

    return patch_all


def _with_known_operands(check: Callable[..., Any], core: Any) -> Callable[..., Any]:
    """Two tensors of one type need no conversion. A number that once met a tensor of some type and shape, and did not
    change it, is the same tensor again."""
    known: dict[Any, Any] = {}

    def number_beside(self: Any, tensor: Any, number: Any, is_left: bool, how: tuple[Any, ...]) -> Any:
        key = (tensor.type.name, type(number), number if type(number) is not float else number.hex(), is_left, *how)
        found = known.get(key)
        if found is None:
            given = (number, tensor) if is_left else (tensor, number)
            made = check(self, *given, *how)
            if made[is_left] is not tensor or len(known) >= _MOST_KNOWN:
                return made
            made[not is_left].handle.data.flags.writeable = False
            found = known[key] = made[not is_left]
        return (found, tensor) if is_left else (tensor, found)

    def check_what_is_new(
        self: Any, lhs: Any, rhs: Any, allow_lhs_ptr: bool = False, allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True, div_or_mod: bool = False,
    ) -> Any:  # fmt: skip
        how = (allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)
        if isinstance(lhs, core.tensor) and isinstance(rhs, core.tensor):
            is_alike = lhs.dtype.name == rhs.dtype.name and not lhs.dtype.is_ptr() and not div_or_mod
            return self.broadcast_impl_value(lhs, rhs) if is_alike else check(self, lhs, rhs, *how)
        if type(rhs) in (int, float, bool) and isinstance(lhs, core.tensor):
            return number_beside(self, lhs, rhs, False, how)
        if type(lhs) in (int, float, bool) and isinstance(rhs, core.tensor):
            return number_beside(self, rhs, lhs, True, how)
        return check(self, lhs, rhs, *how)

    return check_what_is_new


def _to_one_shape(core: Any, interpreter: Any) -> Callable[[Any, Any, Any], Any]:
    one_shape = cache(np.broadcast_shapes)

    def widened(x: Any, shape: tuple[int, ...]) -> Any:
        handle = x.handle
        data = np.empty(shape, handle.data.dtype if x.type.is_block() else interpreter._get_np_dtype(handle.dtype))
        data[...] = handle.data
        kind = core.block_type(x.type.scalar, list(shape))
        return core.tensor(interpreter.TensorHandle(data, handle.dtype.scalar), kind)

    def broadcast(self: Any, left: Any, right: Any) -> Any:
        shapes = [one.handle.data.shape if one.type.is_block() else () for one in (left, right)]
        if shapes[0] == shapes[1]:
            return left, right
        shape = one_shape(*shapes)
        return tuple(x if has == shape else widened(x, shape) for x, has in zip((left, right), shapes, strict=True))

    return broadcast


def _only_what_wraps(core: Any) -> Callable[[Any], Any]:
    unwrap, kinds = core._unwrap_if_constexpr, (core.constexpr, core.tuple, list, tuple)
    wraps = cache(lambda kind: issubclass(kind, kinds))
    return lambda value: unwrap(value) if wraps(type(value)) else value


def _by_name(kind: Any) -> Callable[[Any, Any], bool]:
    return lambda self, other: self is other or (isinstance(other, kind) and self.name == other.name)


def _once_a_type(numpy_type: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[str, Any] = {}

    def look_up(triton_type: Any) -> Any:
        found = known.get(triton_type.name)
        if found is None:
            found = known[triton_type.name] = numpy_type(triton_type)
        return found

    return look_up


def _if_asserts_are_on(check: Callable[..., None]) -> Callable[..., None]:
    def check_or_not(self: Any, *operands: Any) -> None:
        if self.builder.options.debug:
            check(self, *operands)

    return check_or_not


def _once_a_shape(core: Any) -> Callable[..., None]:
    known: dict[Any, dict[str, Any]] = {}
    make = core.block_type.__init__

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = [one.value if isinstance(one, core.constexpr) else one for one in shape]
        key = (element_ty.name, getattr(element_ty, "address_space", None), *sizes)
        if key not in known:
            make(self, element_ty, shape)
            known[key] = dict(vars(self))
        vars(self).update(known[key])

    return init


def _with_shapes_of(core: Any) -> Callable[..., None]:
    @cache
    def shape_of(*sizes: int) -> tuple[Any, Any]:
        """The number of elements and the shape, as a tensor has them."""
        plain = core.tensor.__new__(core.tensor)
        make(plain, None, core.block_type(core.int32, list(sizes)) if sizes else core.int32)
        return plain.numel, plain.shape

    make = core.tensor.__init__

    def init(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = shape_of(*(type.shape if type.is_block() else ()))

    return init
