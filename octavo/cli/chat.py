"""Chat with the model of a running server. Ctrl-C stops an answer, not the program.

octavo chat                            a conversation with the local server
octavo chat -q "Why is the sky blue?"  one answer
octavo chat --url https://example.org/v1 --model-name NAME --api-key KEY --system-prompt "Be brief."
"""

from __future__ import annotations

import argparse
from typing import Any

from octavo.cli.conversation import Conversation
from octavo.cli.parser import CommandParser
from octavo.cli.piped_text import with_piped_text
from octavo.cli.remote_answers import REMOTE_COMMON, Remote, add_remote_flags
from octavo.cli.run_requests import Message
from octavo.errors import ServerError

COMMON = (*REMOTE_COMMON, "--system-prompt")


def add_arguments(parser: CommandParser) -> None:
    add_remote_flags(parser, "message", max_tokens="what the server allows")
    parser.add_argument("--system-prompt", metavar="TEXT", help="a system message before the conversation")


def run(args: argparse.Namespace) -> int:
    remote = Remote.from_flags(args)

    def say(messages: list[Message]) -> str:
        return remote.show("/chat/completions", {"messages": messages}, _new_text)

    first: tuple[Message, ...] = ()
    if args.system_prompt is not None:
        first = ({"role": "system", "content": args.system_prompt},)
    if args.quick is not None:
        say([*first, {"role": "user", "content": with_piped_text([args.quick])[0]}])
    else:
        Conversation(say, (ServerError,), first).run()
    return 0


def _new_text(choice: dict[str, Any]) -> str | None:
    return (choice.get("delta") or {}).get("content")
