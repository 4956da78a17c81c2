"""octavo viz FILE|URL: draw a recorded run, or the last steps of a running server.

As a page that loads nothing: memory block by block, block tables, schedule, prefix tree and numbers of every step.
Or one of these views as a picture, the run as a trace, a step as text.

octavo run smollm2 "A poem about ink" --n 8 --record run.olog
octavo viz run.olog                             writes run.html
octavo viz http://localhost:8000 -o now.html    the last steps of a server
octavo viz run.olog --svg map.svg --step 40     the memory map of a step
octavo viz run.olog --text                      here, in the terminal
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import PurePath

from octavo.cli.flags import check_not_read, whole_number
from octavo.cli.log_source import is_url, open_source
from octavo.cli.parser import CommandParser
from octavo.cli.written_files import write_file
from octavo.errors import ConfigError, LogError
from octavo.observe.events import Event, Scheduled
from octavo.observe.flight_log import LogHeader
from octavo.pictures.picture import Picture, svg
from octavo.pictures.png import check_png, png
from octavo.viz.block_tables import block_tables
from octavo.viz.deltas import MAX_STEPS, TooManyStepsError, deltas_of
from octavo.viz.history import History, history_of
from octavo.viz.memory_map import memory_map
from octavo.viz.numbers import numbers
from octavo.viz.page import render
from octavo.viz.perfetto import trace
from octavo.viz.prefix_tree import prefix_tree
from octavo.viz.schedule import schedule
from octavo.viz.terminal import text

VIEWS = ("memory", "tables", "schedule", "tree", "numbers")


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo viz FILE|URL [options]"
    parser.add_argument("source", metavar="FILE|URL", help="an event log (--record), or the address of a server")
    parser.add_argument("-o", "--output", metavar="FILE", help="the page; default: beside the log, ending in .html")
    parser.add_argument("--steps", metavar="FIRST:LAST", help=f"draw only these steps; in a page at most {MAX_STEPS:,}")
    parser.add_argument("--title", metavar="TEXT", help="the page's heading; default: the log's name")
    parser.add_argument("--svg", metavar="FILE", help="draw a view as SVG, which follows light and dark mode")
    parser.add_argument("--png", metavar="FILE", help="draw a view as PNG; needs matplotlib")
    parser.add_argument("--view", choices=VIEWS, default="memory", help="for --svg and --png (default: memory)")
    parser.add_argument("--step", type=whole_number, metavar="N", help="of a view; default: the one with most blocks")
    parser.add_argument("--group", type=whole_number, metavar="N", help="cache group of tables and tree")
    parser.add_argument("--perfetto", metavar="FILE", help="write a trace that ui.perfetto.dev opens")
    parser.add_argument("--text", action="store_true", help="print a step as text")
    parser.add_argument("--api-key", metavar="KEY", help="the server's key; default: OPENAI_API_KEY, or none")


def run(args: argparse.Namespace) -> int:
    first, last = _steps(args.steps)
    has_others = args.svg or args.png or args.perfetto or args.text
    page = args.output or (None if has_others else _beside(args.source))
    for flag, path in {"--output": page, "--svg": args.svg, "--png": args.png, "--perfetto": args.perfetto}.items():
        check_not_read(flag, path, {"FILE": None if is_url(args.source) else args.source})
    if args.png:
        check_png("--png", args.png, "use --svg")
    header, log = open_source(args.source, args.api_key)
    events = [event for event in log if not (type(event) is Scheduled and last is not None and event.step > last)]
    steps = [event for event in events if type(event) is Scheduled and event.step >= first]
    if not steps:
        raise LogError(f"{args.source} has no step{' of these' if args.steps else ''}: there is nothing to draw")
    if page:
        _write_page(page, args, header, events, first)
    if has_others:
        _draw(args, header, events, steps, first)
    return 0


def _write_page(path: str, args: argparse.Namespace, header: LogHeader, events: list[Event], first: int) -> None:
    try:
        deltas = deltas_of(header.started, events, first)
    except TooManyStepsError as error:
        raise LogError(f"{args.source} has {error}: choose some with --steps FIRST:LAST") from None
    write_file("--output", path, render(deltas, args.title or _title(args.source, header)))
    shown = f"{len(deltas.steps):,} steps of {len(deltas.requests):,} requests"
    _say(f"{path} shows {shown}: open it in a browser")


def _draw(args: argparse.Namespace, header: LogHeader, events: list[Event], steps: list[Scheduled], first: int) -> None:
    """Everything but the page."""
    if args.perfetto:
        write_file("--perfetto", args.perfetto, json.dumps(trace(history_of(header.started, events))))
        _say(f"{args.perfetto} is a trace: open it at https://ui.perfetto.dev")
    if not (args.svg or args.png or args.text):
        return
    step = _step(args.step, steps)
    group = _group(args.group, header)
    is_whole = args.view == "schedule" and args.step is None and not args.text
    history = history_of(header.started, events, None if is_whole else step)
    if args.text:
        sys.stdout.write(text(history, group, shutil.get_terminal_size().columns))
    picture = _picture_of(args.view, history, group, first) if args.svg or args.png else None
    if args.svg and picture:
        write_file("--svg", args.svg, svg(picture))
        _say(f"{args.svg} shows the {args.view} view")
    if args.png and picture:
        write_file("--png", args.png, png(picture))
        _say(f"{args.png} shows the {args.view} view")


def _picture_of(view: str, history: History, group: int, first: int) -> Picture:
    views: dict[str, Callable[[], Picture]] = {
        "memory": lambda: memory_map(history),
        "tables": lambda: block_tables(history, group),
        "schedule": lambda: schedule(history, first),
        "tree": lambda: prefix_tree(history, group),
        "numbers": lambda: numbers(history),
    }
    return views[view]()


def _step(asked: int | None, steps: list[Scheduled]) -> int:
    if asked is None:
        return min(steps, key=lambda event: event.num_free_blocks).step
    if all(event.step != asked for event in steps):
        raise ConfigError(f"--step is {asked}, allowed are the log's steps, {steps[0].step} to {steps[-1].step}")
    return asked


def _group(asked: int | None, header: LogHeader) -> int:
    """By default the last group with full attention."""
    windows, number = header.started.windows, header.started.num_groups
    if asked is not None and not 0 <= asked < number:
        raise ConfigError(f"--group is {asked}, allowed is 0 to {number - 1}: the engine has {number} cache groups")
    return asked if asked is not None else max([0, *(at for at, window in enumerate(windows) if window is None)])


def _say(words: str) -> None:
    print(f"octavo: {words}", file=sys.stderr)


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
