"""Flags made from octavo/config.py (`max_num_seqs` is `--max-num-seqs`), and checks that several commands share.

A flag that is not given is absent from the parsed arguments: the only default is the config's. Values are passed on as
text, and the config checks them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from octavo import __version__, checked_fields
from octavo.config import EngineConfig, ModelConfig
from octavo.errors import ConfigError
from octavo.observe import machine


def whole_number(text: str) -> int:
    """16, 32k (32,000), 32K (32,768), 1.5G (1,610,612,736), -1."""
    value = checked_fields.whole_number(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number such as 16, 32k (32,000) or 4G (4 * 1024^3)")
    return value


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 2, 0.5 or 1e-3")
    return value


def json_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None


def config_fields() -> dict[str, tuple[Field[Any], Any]]:
    """Every engine option: name -> its dataclass field and its type."""
    found: dict[str, tuple[Field[Any], Any]] = {}
    for section in get_type_hints(EngineConfig).values():
        hints = get_type_hints(section)
        found.update({field.name: (field, hints[field.name]) for field in fields(section)})
    return found


def add_section_flags(group: argparse._ArgumentGroup, section: type[Any], is_flag: Callable[[str], bool]) -> None:
    """A flag for every field of a section that `is_flag` names."""
    hints = get_type_hints(section)
    for field in fields(section):
        if is_flag(field.name):
            is_shown = field.default is not None and field.default != () and field.default is not MISSING
            default = f" (default: {field.default})" if is_shown else ""
            _add_flag(group, field.name, hints[field.name], field.metadata["help"] + default)


def section_options(args: argparse.Namespace, section: type[Any]) -> dict[str, Any]:
    """The options of a section that were given on the command line, as keyword arguments."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(args).items()}
    return {field.name: given[field.name] for field in fields(section) if field.name in given}


def add_engine_flags(parser: argparse.ArgumentParser, exclude: Collection[str] = ()) -> None:
    """A flag for every engine option but the model, which a command takes by itself (`CommandParser.takes_model`), and
    names that mean something else in this command."""
    for section in get_type_hints(EngineConfig).values():
        about = f"{section.__doc__} Sizes may be written 32k (thousands) or 4G (of 1024)."
        group = parser.add_argument_group(section.__name__, about)
        add_section_flags(group, section, lambda name: name != "model" and name not in exclude)


def engine_options(args: argparse.Namespace, exclude: Collection[str] = ()) -> dict[str, Any]:
    """The engine options given on the command line, as keyword arguments of LLM, but for the model and these."""
    given = {name: value for name, value in vars(args).items() if name != "model" and name not in exclude}
    return {name: given[name] for name in config_fields() if name in given}


def _add_flag(group: argparse._ArgumentGroup, name: str, hint: Any, text: str) -> None:
    """One flag, of the type `hint`."""
    flag = "--" + name.replace("_", "-")
    kinds = [kind for kind in checked_fields.kinds(hint) if kind is not NoneType]
    text = text.replace("%", "%%")
    if kinds == [bool]:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    elif get_origin(kinds[0]) is tuple:
        group.add_argument(flag, nargs="+", action="extend", metavar="TEXT", default=argparse.SUPPRESS, help=text)
    else:
        group.add_argument(flag, metavar=_metavar(kinds[0]), default=argparse.SUPPRESS, help=text)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return {int: "N", float: "X"}.get(kind, "TEXT")


def add_flags(group: argparse._ActionsContainer, table: Mapping[str, tuple[str, Any, str]]) -> None:
    """Flags that take one value: name -> metavar, default, help. N is a whole number, X a number, S seconds, any other
    metavar a text. Without a default here, the help names the one that the command fills in."""
    kinds: dict[str, Callable[[str], Any]] = {"N": whole_number, "X": number, "S": number}
    for name, (metavar, default, text) in table.items():
        form = "g" if isinstance(default, float) else ""
        shown = text if default is None else f"{text} (default: {default:{form}})"
        kind = kinds.get(metavar, str)
        group.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=shown)


def check_counts(args: argparse.Namespace, *names: str, least: int = 1) -> None:
    """Raise ConfigError for a count below `least`; None means the flag was left out."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, allowed is {least} or more")


def vocab_size(args: argparse.Namespace) -> int:
    """The vocabulary size of --model, from its configuration; random prompts are drawn from it."""
    from octavo.models.loader import open_checkpoint

    model = ModelConfig(model=args.model, load_format=getattr(args, "load_format", "auto"))
    return open_checkpoint(model).architecture.vocab_size


def numbers_of(flag: str, text: str, allowed: str, low: float, high: float) -> list[float]:
    """Numbers joined by commas, from `low` to `high`. Raises ConfigError."""
    try:
        numbers = [float(one) for one in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(low <= one <= high for one in numbers):
        raise ConfigError(f"{flag} is {text!r}, allowed are {allowed}, joined by commas")
    return numbers


def machine_facts() -> dict[str, Any]:
    """The machine and the versions behind a measurement."""
    python = platform.python_version()
    cpu = {"cpu": machine.cpu_name(), "features": machine.cpu_features(), "cores": machine.num_cores()}
    return {"octavo": __version__, "python": python, **cpu}


def check_not_read(flag: str, path: str | None, read: Mapping[str, str | None]) -> None:
    """Raise ConfigError if `flag` names a file that the command reads, under any name or link. read: source name ->
    path, - for standard input; a folder stands for the files in it."""
    if path is None or not os.path.exists(path):
        return
    written = os.stat(path)
    if not os.path.isfile(path):
        return  # a terminal, a pipe or /dev/null: nothing can be lost
    for name, source in read.items():
        if source is not None and any(os.path.samestat(written, one) for one in _files(source)):
            raise ConfigError(f"{flag} {path} is the file that {name} reads, so writing would destroy it: name another")


def _files(source: str) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError, ValueError):  # a missing file cannot be overwritten
        if source == "-":
            yield os.fstat(sys.stdin.fileno())
        elif os.path.isdir(source):
            yield from (entry.stat() for entry in os.scandir(source))
        else:
            yield os.stat(source)
