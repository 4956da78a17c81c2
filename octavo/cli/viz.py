"""octavo viz FILE|URL: draw a recorded run, or the last steps of a running server, as one page that loads nothing.

The page shows memory block by block, the block tables, the schedule, the prefix tree and the numbers of every step.

octavo run smollm2 "A poem about ink" --n 8 --record run.olog
octavo viz run.olog                             writes run.html
octavo viz http://localhost:8000 -o now.html    the last steps of a server
octavo viz run.olog --steps 100:200             only these steps
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path, PurePath

from octavo.cli.flags import check_not_read
from octavo.cli.log_source import is_url, open_source
from octavo.cli.parser import CommandParser
from octavo.errors import ConfigError, LogError
from octavo.observe.flight_log import LogHeader
from octavo.viz.deltas import MAX_STEPS, Deltas, TooManyStepsError, deltas_of
from octavo.viz.page import render


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo viz FILE|URL [options]"
    parser.add_argument("source", metavar="FILE|URL", help="an event log (--record), or the address of a server")
    parser.add_argument("-o", "--output", metavar="FILE", help="the page; default: beside the log, ending in .html")
    parser.add_argument("--steps", metavar="FIRST:LAST", help=f"draw only these steps, at most {MAX_STEPS:,}")
    parser.add_argument("--title", metavar="TEXT", help="the page's heading; default: the log's name")
    parser.add_argument("--api-key", metavar="KEY", help="the server's key; default: OPENAI_API_KEY, or none")


def run(args: argparse.Namespace) -> int:
    first, last = _steps(args.steps)
    path = args.output or _beside(args.source)
    check_not_read("--output", path, {"FILE": None if is_url(args.source) else args.source})
    header, log = open_source(args.source, args.api_key)
    try:
        deltas = deltas_of(header.started, log, first, last)
    except TooManyStepsError as error:
        raise LogError(f"{args.source} has {error}: choose some with --steps FIRST:LAST") from None
    if not deltas.steps:
        raise LogError(f"{args.source} has no step{' of these' if args.steps else ''}: there is nothing to draw")
    write(path, render(deltas, args.title or _title(args.source, header)))
    print(f"octavo: {path} shows {_told(deltas)}: open it in a browser", file=sys.stderr)
    return 0


def write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:  # a name may hold what no file's can
        raise ConfigError(f"--output {path} cannot be written: {error}") from None


def _steps(text: str | None) -> tuple[int, int | None]:
    """The first and the last step; 0 and None without a limit."""
    if text is None:
        return 0, None
    found = re.fullmatch(r"(\d{0,15}):(\d{0,15})", text, re.ASCII)
    first, last = (int(found[1] or 0), int(found[2]) if found[2] else None) if found else (1, 0)
    if last is not None and last < first:
        raise ConfigError(f"--steps is {text!r}, allowed is FIRST:LAST, such as 100:200, 100: or :200")
    return first, last


def _beside(source: str) -> str:
    return "octavo.html" if is_url(source) else f"{os.path.splitext(source)[0]}.html"


def _title(source: str, header: LogHeader) -> str:
    model = header.config.get("model", {}).get("model")
    name = source if is_url(source) else PurePath(source).name
    return f"{PurePath(str(model)).name}, {name}" if model else name


def _told(deltas: Deltas) -> str:
    return f"{len(deltas.steps):,} steps of {len(deltas.lives):,} requests"
