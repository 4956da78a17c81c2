"""octavo: the command line. One file a command, and only the command that is asked for is imported.

A command is a module with `add_arguments(parser)` and `run(args) -> exit code`. Exit codes: 0 done,
1 done with a bad result, 2 refused (one line says why), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from octavo import __version__
from octavo.errors import OctavoError

COMMANDS = {
    "run": "answer prompts from the command line, a file or a pipe, or chat on a terminal",
    "doctor": "say what this machine has, which backends work here, and why the others do not",
    "bench": "measure",
}


class Command(Protocol):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser, command = _parser_for(argv)
    if command is None:
        parser.parse_args(argv)
        parser.print_help()
        return 0
    args = parser.parse_args(argv)
    try:
        return command.run(args)
    except OctavoError as error:
        if args.debug:
            raise
        print(f"octavo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away; what is still buffered must not raise again when Python closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser_for(argv: list[str]) -> tuple[argparse.ArgumentParser, Command | None]:
    """The parser, with the flags of the one command that `argv` names, and that command."""
    parser = argparse.ArgumentParser(prog="octavo", description="Octavo, an LLM inference engine.")
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands")
    command: Command | None = None
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if argv and argv[0] == name:
            command = cast(Command, import_module(f"octavo.cli.{name}"))
            command.add_arguments(subparser)
            subparser.add_argument(
                "--debug",
                action="store_true",
                default=bool(os.environ.get("OCTAVO_DEBUG")),
                help="show the traceback of an error; also OCTAVO_DEBUG=1",
            )
    return parser, command
