"""Flags made from octavo/config.py: `max_num_seqs` is `--max-num-seqs`, its help is the field's own.

A flag that is not given leaves no trace in the parsed arguments, so the config's default stays the only one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from octavo.config import EngineConfig

# As vLLM reads them: a small letter counts in thousands, a capital one in 1024s.
_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def whole_number(text: str) -> int:
    """16, 32k (32,000), 32K (32,768), 1.5G (1,610,612,736), -1."""
    match = re.fullmatch(r"(-?[0-9]+(?:\.[0-9]+)?)([kmgtKMGT]?)", text)
    value = float(match[1]) * _SUFFIXES[match[2]] if match else 0.5
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number such as 16, 32k (32,000) or 4G (4 * 1024^3)")
    return int(value)


def config_fields() -> dict[str, tuple[Field[Any], Any]]:
    """Every engine option: name -> its dataclass field and its type."""
    found: dict[str, tuple[Field[Any], Any]] = {}
    for section in get_type_hints(EngineConfig).values():
        hints = get_type_hints(section)
        found.update({field.name: (field, hints[field.name]) for field in fields(section)})
    return found


def add_section_flags(group: argparse._ArgumentGroup, section: type[Any]) -> None:
    """A flag for every field of a section that is no engine's."""
    hints = get_type_hints(section)
    for field in fields(section):
        add_flag(group, field.name, hints[field.name], _help_of(field))


def section_options(args: argparse.Namespace, section: type[Any]) -> dict[str, Any]:
    """What was given on the command line, as keywords for the section."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(args).items()}
    return {field.name: given[field.name] for field in fields(section) if field.name in given}


def add_engine_flags(parser: argparse.ArgumentParser, exclude: frozenset[str]) -> None:
    """A flag for every option, but for those whose names mean something else to this command."""
    group = parser.add_argument_group("engine options", "sizes may be written 32k (thousands) or 4G (of 1024)")
    for name, (field, hint) in config_fields().items():
        if name not in exclude:
            add_flag(group, name, hint, _help_of(field))


def _help_of(field: Field[Any]) -> str:
    is_shown = field.default is not None and field.default != () and field.default is not MISSING
    return f"{field.metadata['help']} (default: {field.default})" if is_shown else str(field.metadata["help"])


def engine_options(args: argparse.Namespace, exclude: frozenset[str]) -> dict[str, Any]:
    """What was given on the command line, as keywords for LLM."""
    given = vars(args)
    return {name: given[name] for name in config_fields() if name in given and name not in exclude}


def add_flag(group: argparse._ArgumentGroup, name: str, hint: Any, text: str) -> None:
    """One flag of the type that `hint` says."""
    flag = "--" + name.replace("_", "-")
    kind = _without_none(hint)
    text = text.replace("%", "%%")
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    elif get_origin(kind) is tuple:
        group.add_argument(flag, nargs="+", action="extend", metavar="TEXT", default=argparse.SUPPRESS, help=text)
    elif get_origin(kind) is Literal:
        group.add_argument(flag, choices=get_args(kind), default=argparse.SUPPRESS, help=text)
    else:
        convert, metavar = _VALUES[kind]
        group.add_argument(flag, type=convert, metavar=metavar, default=argparse.SUPPRESS, help=text)


_VALUES: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (whole_number, "N"),
    float: (float, "X"),
    str: (str, "TEXT"),
}


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[0] if len(kinds) == 1 and NoneType in get_args(hint) else hint
