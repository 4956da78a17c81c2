"""octavo: the command line. One file a command, and only the command that is asked for is imported.

A command is a module with `add_arguments(parser)` and `run(args) -> exit code`; its docstring heads its
help. Exit codes: 0 done,
1 done with a bad result, 2 refused (one line says why), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from octavo import __version__, env
from octavo.errors import OctavoError

COMMANDS = {
    "run": "answer prompts, or chat",
    "serve": "answer over HTTP, as OpenAI and Anthropic do",
    "run-batch": "answer a file of calls in OpenAI's batch format, and go on where it stopped",
    "chat": "chat with the model of a running server",
    "complete": "complete prompts with the model of a running server",
    "doctor": "what this machine has, which backends work here and why the others do not",
    "bench throughput": "measure: requests and tokens a second, all requests at once",
    "bench latency": "measure: seconds of one batch",
    "bench serve": "measure: a running server, what its users wait for under load",
    "bench startup": "measure: seconds from a fresh process to the first token",
}


class Command(Protocol):
    """What a command's module offers."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    name = next((name for name in COMMANDS if argv[: name.count(" ") + 1] == name.split()), None)
    if name is None:
        return _without_command(argv)
    rest = argv[name.count(" ") + 1 :]
    command = cast(Command, import_module(f"octavo.cli.{re.sub('[ -]', '_', name)}"))
    parser = argparse.ArgumentParser(
        prog=f"octavo {name}", description=command.__doc__, allow_abbrev=False, formatter_class=_HelpFormatter
    )
    command.add_arguments(parser)
    parser.add_argument(
        "--debug",
        action="store_true",
        default=env.is_debug(),
        help="show the traceback of an error; also OCTAVO_DEBUG=1",
    )
    args = parser.parse_intermixed_args(rest)
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


def _without_command(argv: list[str]) -> int:
    """Help, the version, or a refusal."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="octavo",
        description="Octavo, an LLM inference and serving engine that one person can read.",
        epilog=f"commands:\n{commands}\n\n`octavo COMMAND --help` says more.",
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    parser.add_argument("command", metavar="COMMAND", nargs="*", help="one of those below")
    given = parser.parse_args(argv).command
    if given and given != ["bench"]:
        parser.error(f"there is no command {' '.join(given)!r}; choose from {', '.join(map(repr, COMMANDS))}")
    parser.print_help()
    return 0


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves descriptions as they are written, and gives flags room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)
