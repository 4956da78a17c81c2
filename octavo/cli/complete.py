"""Complete raw prompts with the model of a running server. Ctrl-C stops the completion, not the program.

octavo complete                                        one prompt per line
octavo complete -q "Once upon a time" --max-tokens 50  one completion
"""

from __future__ import annotations

import argparse
import sys

from octavo.cli.chat import REMOTE_COMMON, Remote, add_remote_flags
from octavo.cli.parser import CommandParser
from octavo.cli.run import RAW_MAX_TOKENS
from octavo.cli.standard_input import typed_messages, with_piped_text
from octavo.errors import ServerError

COMMON = REMOTE_COMMON


def add_arguments(parser: CommandParser) -> None:
    add_remote_flags(parser, "prompt", max_tokens=str(RAW_MAX_TOKENS))


def run(args: argparse.Namespace) -> int:
    remote = Remote.from_flags(args)
    remote.options.setdefault("max_tokens", RAW_MAX_TOKENS)  # the API's own default is 16
    if args.quick is not None:
        _complete(remote, with_piped_text([args.quick])[0])
        return 0
    for line in typed_messages("Type a prompt to be continued, Ctrl-D to leave."):
        if not line:
            continue
        try:
            _complete(remote, line)
        except ServerError as error:
            if not sys.stdin.isatty():
                raise
            print(f"octavo: {error}", file=sys.stderr)
    return 0


def _complete(remote: Remote, prompt: str) -> None:
    remote.show("/completions", {"prompt": prompt}, lambda choice: choice.get("text"))
