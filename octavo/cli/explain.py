"""octavo explain REQUEST_ID: a request's life in sentences, with times, from a log or a running server.

octavo explain cmpl-8f31 --log run.olog
octavo explain cmpl-8f31                            a server on this machine
octavo explain cmpl-8f31 --log http://gpu-box:8000  another one
octavo explain --log run.olog                          which requests it has
"""

from __future__ import annotations

import argparse
import time

from octavo.cli.log_source import open_source
from octavo.cli.parser import CommandParser
from octavo.cli.terminal_text import visible
from octavo.errors import LogError
from octavo.observe.explain import requests_in, stories
from octavo.observe.flight_log import LogHeader
from octavo.observe.story import Story, span

_MOST_LISTED = 100


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo explain [REQUEST_ID] [--log FILE|URL]"
    parser.add_argument("request_id", nargs="?", metavar="REQUEST_ID", help="an answer's id; default: list the ids")
    parser.add_argument(
        "--log",
        metavar="FILE|URL",
        default="http://localhost:8000",
        help="an event log (--record), or the address of a server; default: http://localhost:8000",
    )
    parser.add_argument("--api-key", metavar="KEY", help="the server's key; default: OPENAI_API_KEY, or none")


def run(args: argparse.Namespace) -> int:
    header, events = open_source(args.log, args.api_key)
    if args.request_id is None:
        names = requests_in(events, _MOST_LISTED)
        if not names:
            raise LogError(f"{args.log} has no request: there is nothing to explain")
        print(*map(visible, names), sep="\n")
        return 0
    for number, story in enumerate(stories(events, args.request_id)):
        print("" if number == 0 else "\n", visible(_heading(story, header)), sep="")
        print(*(f"{span(moment.after):>10}  {visible(moment.text)}" for moment in story.moments), sep="\n")
    return 0


def _heading(story: Story, header: LogHeader) -> str:
    try:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(header.wall_time(story.begin)))
    except (ValueError, OverflowError, OSError):  # a file may say anything
        when = "an unknown time"
    seen = "arrived" if story.arrived is not None else "arrived before this log begins, and was seen first"
    return f"request {story.name}, {seen} at {when}"
