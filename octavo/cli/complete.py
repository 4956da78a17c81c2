"""Complete prompts, as they are, with the model of a running server. Ctrl-C stops a completion, not the program.

octavo complete                                              one prompt a line, typed or from a pipe
octavo complete -q "Once upon a time" --max-tokens 50        one completion
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from octavo.cli.conversation import typed_lines
from octavo.cli.remote_answers import Remote, add_remote_flags
from octavo.cli.run import RAW_MAX_TOKENS
from octavo.errors import ServerError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_remote_flags(parser, "prompt")


def run(args: argparse.Namespace) -> int:
    remote = Remote.from_flags(args)
    remote.options.setdefault("max_tokens", RAW_MAX_TOKENS)  # the API's own default is 16
    if args.quick is not None:
        _complete(remote, args.quick)
        return 0
    for line in typed_lines("Type a prompt to be continued, Ctrl-D to leave."):
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
    remote.show("/completions", {"prompt": prompt}, _new_text)


def _new_text(choice: dict[str, Any]) -> str | None:
    return choice.get("text")
