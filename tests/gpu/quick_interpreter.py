"""Triton's interpreter without the work that it does over and over: the same results in half the time.

For each call of a function in a kernel it patches triton.language anew, though the kernel's launch has just done so,
and each launch looks through all of triton.language for what it patches. It computes whether integers overflow, and
drops the finding unless asserts are on. For each value it builds a table of all types, and for each tensor it makes the
same shape and type again. It compares shapes number by number, each wrapped and unwrapped.

And one thing differently: on some CPUs NumPy's library multiplies a row of float32 by another kernel in another place,
so a row's result would depend on the others, which no GPU's does. Products are added up in float64, then rounded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np


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
    interpreter._patch_builtin = _found_once(interpreter._patch_attr, core.is_builtin)
    semantic.TritonSemantic.broadcast_impl_value = _unless_alike(semantic.TritonSemantic.broadcast_impl_value)
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


def _found_once(patch: Callable[..., None], is_builtin: Callable[[Any], bool]) -> Callable[..., None]:
    members: dict[Any, list[tuple[str, Any]]] = {}

    def patch_all(package: Any, builder: Any, scope: Any) -> None:
        if package not in members:
            members[package] = [(name, one) for name, one in inspect.getmembers(package) if is_builtin(one)]
        for name, member in members[package]:
            patch(package, name, member, builder, scope)

    return patch_all


def _unless_alike(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    def broadcast_if_needed(self: Any, left: Any, right: Any) -> Any:
        is_alike = left.type.is_block() == right.type.is_block() and left.handle.data.shape == right.handle.data.shape
        return (left, right) if is_alike else broadcast(self, left, right)

    return broadcast_if_needed


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
