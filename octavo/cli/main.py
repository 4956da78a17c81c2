"""octavo: the command line. One file per command; only the requested command is imported.

A command is a module with `add_arguments(parser)` and `run(args) -> exit code`; its docstring heads its help, and
COMMON lists the flags that `--help` shows. Exit codes: 0 done, 1 done with a bad result, 2 refused (with one line on
why), 130 stopped by Ctrl-C, 141 the reader of the output closed the pipe.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from octavo import __version__, env
from octavo.cli.interrupts import INTERRUPTED, interruptible, is_interrupt
from octavo.cli.parser import CommandParser, help_word
from octavo.errors import BackendUnavailableError, ConfigError, OctavoError
from octavo.shown import suggestion

COMMANDS = {
    "run": "answer prompts, or chat",
    "serve": "answer over HTTP, as OpenAI, Anthropic and Ollama do",
    "run-batch": "answer a file of calls in OpenAI's batch format; resumable",
    "chat": "chat with the model of a running server",
    "complete": "complete prompts with the model of a running server",
    "plan": "the memory that a model will take, here or on a GPU you name",
    "quantize": "a dense model as a smaller checkpoint or GGUF file",
    "eval": "what a model has lost: perplexity, KL divergence, questions",
    "list": "the models here: packaged, from the hub, in this folder",
    "pull": "download a model from the Hugging Face hub",
    "explain": "what happened to a request, from a log or a running server",
    "replay": "decide a recorded run again, without weights",
    "viz": "draw a recorded run, or a running server, as a page",
    "doctor": "which backends work here, and why the others do not",
    "kernels list": "each op's kernels: which run here, and why others do not",
    "kernels build": "compile the kernels that changed, in parallel",
    "kernels test": "compare an op's kernels with the reference; run its tests",
    "kernels bench": "time an op at several shapes, beside the machine's limits",
    "kernels new": "write a new element-wise op that compiles and passes",
    "bench throughput": "measure: requests and tokens per second of a workload",
    "bench latency": "measure: seconds of one batch",
    "bench serve": "measure: latency and throughput of a server under load",
    "bench cost": "measure: what steps cost, for octavo simulate",
    "bench sharing": "measure: what samples of one prompt save by sharing",
    "bench startup": "measure: seconds from a fresh process to the first token",
    "simulate": "predict latencies and memory of a load",
    "help": "this; with a command's name, that command's",
}
_DONE, _REFUSED = 0, 2
_READER_LEFT = 141  # a shell's exit code for SIGPIPE


class Command(Protocol):
    """The interface of a command's module."""

    __doc__: str | None

    def add_arguments(self, parser: CommandParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    is_debugged = env.is_debug() or "--debug" in argv
    try:
        with interruptible():
            return _run(argv)
    except BaseException as error:
        # A library may turn Ctrl-C into any exception.
        if is_interrupt(error):
            return INTERRUPTED
        if isinstance(error, BrokenPipeError):
            # The pipe is closed; buffered output must not raise again when Python closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _READER_LEFT
        if is_debugged or not isinstance(error, (OctavoError, OSError)):
            raise
        print(f"octavo: error: {_told(error)}", file=sys.stderr)
        return _REFUSED


#: of a disk, and of a user's share of it
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def _told(error: BaseException) -> str:
    """The message on one line: line ends, terminal codes and lone surrogates are escaped. Only compiler output keeps
    its lines."""
    if isinstance(error, OSError) and error.filename is None and error.errno in _NO_ROOM:
        return f"an output cannot be written: {error.strerror}; free some space where it goes, or name another place"
    kept = "\n" if isinstance(error, BackendUnavailableError) else ""
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in str(error))


def _run(argv: list[str]) -> int:
    if argv[:1] == ["help"]:
        argv = _asking_for_help(argv[1:])
    name = next((name for name in COMMANDS if argv[: name.count(" ") + 1] == name.split()), None)
    if name is None:
        return _without_command(argv)
    rest = argv[name.count(" ") + 1 :]
    command = cast(Command, import_module(f"octavo.cli.{re.sub('[ -]', '_', name)}"))
    parser = parser_of(name, command)
    if (word := help_word(rest)) is not None:
        print(parser.help_for(word))
        return _DONE
    return command.run(parser.parse(rest))


def parser_of(name: str, command: Command) -> CommandParser:
    parser = CommandParser(name, command.__doc__, getattr(command, "COMMON", ()))
    command.add_arguments(parser)
    text = "show the traceback of an error; also OCTAVO_DEBUG=1"
    parser.add_argument("--debug", action="store_true", default=env.is_debug(), help=text)
    return parser


def _asking_for_help(words: list[str]) -> list[str]:
    """`help run` is `run --help`, `help run all` is `run --help=all`."""
    for name in COMMANDS:
        length = name.count(" ") + 1
        if words[:length] == name.split() and name != "help":
            about = [f"--help={word.lstrip('-')}" for word in words[length:]]
            return [*name.split(), *(about[:1] or ["--help"])]
    return words if words not in ([], ["help"]) else ["--help"]


def _without_command(argv: list[str]) -> int:
    """Help, the version, or a refusal."""
    if argv == ["--version"]:
        print(f"octavo {__version__}")
        return _DONE
    group = argv[0] if argv[:1] and any(name.startswith(f"{argv[0]} ") for name in COMMANDS) else ""
    if argv in ([], [group]) or help_word(argv) is not None:
        print(_overview({name: text for name, text in COMMANDS.items() if not group or name.startswith(f"{group} ")}))
        return _DONE
    given = " ".join(argv[:2] if group else argv[:1])
    if given.startswith("-"):
        raise ConfigError(f"{given} comes before the command: write `octavo COMMAND {given}`")
    raise ConfigError(f"there is no command {given!r}; {suggestion(given, COMMANDS)}")


def _overview(commands: dict[str, str]) -> str:
    width = max(map(len, commands))
    lines = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in commands.items())
    return f"""usage: octavo [--version] COMMAND [...]

Octavo, an LLM inference and serving engine that one person can read.

commands:
{lines}

`octavo COMMAND --help` says more."""
