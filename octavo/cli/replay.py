"""octavo replay FILE: decide a recorded run again, without weights, and say whether it comes out the same.

octavo run smollm2 "A poem about ink" --n 8 --record run.olog
octavo replay run.olog    this version's scheduler and cache, the log's results

The exit code is 1 if they decide anything otherwise; the first difference is named.
"""

from __future__ import annotations

import argparse

from octavo.cli.parser import CommandParser
from octavo.cli.terminal_text import visible
from octavo.observe.flight_log import read_log
from octavo.simulator.replay import replay


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo replay FILE"
    parser.add_argument("log", metavar="FILE", help="an event log: of a whole run (--record), or its last events")


def run(args: argparse.Namespace) -> int:
    found = replay(lambda: read_log(args.log))
    if found.difference is None:
        print(f"{found.num_steps:,} steps, {found.num_events:,} events: all decided as they were")
        return 0
    print(f"after {found.num_steps:,} steps and {found.num_events:,} events: {visible(found.difference)}")
    return 1
