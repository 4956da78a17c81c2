"""Checks and normalises each field of a config section against its annotation.

    @checked
    @dataclass(frozen=True, slots=True, kw_only=True)
    class CacheConfig:
        enable_prefix_caching: bool = knob(True, "...")     "no" is refused: allowed are True and False

A knob may have other spellings of its values, and names of values that are not supported yet. None means the default
unless None is a value. Each section then checks combinations of fields itself.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from functools import cache, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from octavo.errors import ConfigError
from octavo.shown import shown, suggestion
from octavo.vllm_options import NotHere

Section = TypeVar("Section")

# As in vLLM: a lower-case suffix is a power of 1000, an upper-case one a power of 1024.
_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MAX_INT = 2**63 - 1  # the range of files, kernels and messages between processes
_NOT_THAT = object()  # the value is not of this kind


def knob(
    default: Any,
    why: str,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    spellings: Mapping[Any, Any] | None = None,
    not_yet: Mapping[str, NotHere] | None = None,
) -> Any:
    """A field with its default and its --help text. spellings: other ways to write a value. not_yet: values of vLLM
    that are not supported, and the alternatives."""
    metadata = {"help": why, "range": (at_least, at_most), "spellings": spellings or {}, "not_yet": not_yet or {}}
    return field(default=default, metadata=metadata)


def checked(section: type[Section]) -> type[Section]:
    """Class decorator: check and normalise the keyword arguments of a dataclass."""
    whole: Any = section
    make: Callable[..., None] = whole.__init__

    @wraps(make)
    def init(self: Section, **given: Any) -> None:
        rules = _rules(whole)
        for name in given:
            if name not in rules:
                raise ConfigError(f"{section.__name__} has no option {name!r}; {suggestion(name, rules)}")
        make(self, **{name: _value(*rules[name], value) for name, value in given.items()})

    whole.__init__ = init
    return section


def whole_number(text: str) -> int | None:
    """16, 32k (32,000), 32K (32,768), 1.5G (1,610,612,736), -1; None for anything else."""
    match = re.fullmatch(r"(-?[0-9]+)(?:\.([0-9]+))?([kmgtKMGT]?)", text.strip())
    if match is None or len(text) > 40:
        return None
    fraction = match[2] or ""
    value, rest = divmod(int(match[1] + fraction) * _SUFFIXES[match[3]], 10 ** len(fraction))
    return None if rest else value


def spelled(field: Field[Any], value: object) -> object:
    """The value that a spelling stands for, or the value itself."""
    if type(value).__module__ == "torch":  # its dtypes
        value = str(value).rpartition(".")[2]
    for other, meaning in field.metadata.get("spellings", {}).items():
        if type(other) is type(value) and other == value:
            return meaning
    return value


@cache
def _rules(section: Any) -> dict[str, tuple[Field[Any], tuple[Any, ...]]]:
    """Field name -> the field and its allowed kinds."""
    hints = get_type_hints(section)
    return {field.name: (field, kinds(hints[field.name])) for field in fields(section)}


def kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type that a hint is."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _value(field: Field[Any], kinds: tuple[Any, ...], given: object) -> Any:
    value = spelled(field, given)
    if value is None and NoneType not in kinds:
        return field.default if field.default_factory is MISSING else field.default_factory()
    for kind in kinds:
        found = _take(kind, value)
        if found is not _NOT_THAT:
            return _within(field, found)
    not_yet = field.metadata.get("not_yet", {})
    if isinstance(value, str) and value in not_yet:
        raise ConfigError(not_yet[value].refusal(field.name, value))
    allowed = _either([text for kind in kinds for text in _allowed(kind)] + _spelling_texts(field))
    raise ConfigError(f"{field.name} is {shown(given)}, {allowed}")


def _within(field: Field[Any], value: Any) -> Any:
    """The value. Raises ConfigError for a number outside the field's range."""
    low, high = field.metadata.get("range", (-math.inf, math.inf))
    if isinstance(value, int | float) and not low <= value <= high:
        raise ConfigError(
            f"{field.name} is {value}, allowed is {low} {'or more' if high == math.inf else f'to {high}'}"
        )
    return value


def _take(kind: Any, value: object) -> Any:
    """The value converted to this kind, or _NOT_THAT."""
    origin = get_origin(kind)
    if kind in _READERS:
        return _READERS[kind](value)
    if origin is Literal:
        return next((one for one in get_args(kind) if type(one) is type(value) and one == value), _NOT_THAT)
    if origin is tuple:
        return _strings(value)
    return value if isinstance(value, origin or kind) else _NOT_THAT


def _bool(value: object) -> Any:
    return value if isinstance(value, bool) else _NOT_THAT


def _int(value: object) -> Any:
    if isinstance(value, str):
        value = whole_number(value)
    if isinstance(value, bool) or not isinstance(value, Integral) or not -_MAX_INT <= int(value) <= _MAX_INT:
        return _NOT_THAT
    return int(value)


def _float(value: object) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real | str):
        return _NOT_THAT
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return _NOT_THAT
    return _NOT_THAT if math.isnan(number) else number


def _str(value: object) -> Any:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return value if isinstance(value, str) else _NOT_THAT


def _strings(value: object) -> Any:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence) or any(not isinstance(one, str) for one in value):
        return _NOT_THAT
    return tuple(value)


_READERS: dict[Any, Callable[[object], Any]] = {
    NoneType: lambda value: None if value is None else _NOT_THAT,
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
}


def _allowed(kind: Any) -> list[str]:
    """The allowed values of a kind, for error messages."""
    words = {
        bool: ["True", "False"],
        int: ["a whole number (16, '4k', '1.5G')"],
        float: ["a number"],
        str: ["text"],
        NoneType: ["None"],
    }
    if kind in words:
        return words[kind]
    if get_origin(kind) is Literal:
        return [repr(one) for one in get_args(kind)]
    return ["a list of texts"] if get_origin(kind) is tuple else [f"a {getattr(kind, '__name__', kind)}"]


def _spelling_texts(field: Field[Any]) -> list[str]:
    return [repr(other) for other in field.metadata.get("spellings", {}) if other is not None]


def _either(texts: Iterable[str]) -> str:
    *most, last = texts
    return f"allowed are {', '.join(most)} and {last}" if most else f"allowed is {last}"
