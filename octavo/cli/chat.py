"""Chat with the model of a running server. Ctrl-C stops an answer, not the program.

octavo chat                            a conversation with the local server
octavo chat -q "Why is the sky blue?"  one answer
octavo chat --url https://example.org/v1 --model-name NAME --api-key KEY --system-prompt "Be brief."

On a terminal, a dim line after each answer gives its speed; control characters in answers are escaped.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from octavo import env
from octavo.cli.conversation import Conversation
from octavo.cli.parser import CommandParser
from octavo.cli.run_requests import Message
from octavo.cli.sampling_flags import (
    FOR_PEOPLE,
    RECOMMENDED,
    REPEATED,
    add_sampling_flags,
    fresh_seed,
    sampling_options,
    seed_of,
)
from octavo.cli.server_api import ServerApi
from octavo.cli.standard_input import with_piped_text
from octavo.cli.terminal_text import TerminalText
from octavo.errors import ServerError

DEFAULT_URL = "http://localhost:8000/v1"

# Only one answer is streamed, and the API has no skip_reading_prefix_cache.
_NOT_FLAGS = frozenset({"n", "skip_reading_prefix_cache"})

REMOTE_COMMON = (
    *("--url", "--model-name", "--api-key", "-q", "--temperature", "--top-p", "--max-tokens", "--seed", "--stop"),
)
COMMON = (*REMOTE_COMMON, "--system-prompt")


def add_arguments(parser: CommandParser) -> None:
    add_remote_flags(parser, "message", max_tokens="the server's limit")
    parser.add_argument("--system-prompt", metavar="TEXT", help="a system message before the conversation")


def run(args: argparse.Namespace) -> int:
    remote = Remote.from_flags(args)

    def say(messages: list[Message]) -> str:
        return remote.show(
            "/chat/completions", {"messages": messages}, lambda choice: (choice.get("delta") or {}).get("content")
        )

    first: tuple[Message, ...] = ()
    if args.system_prompt is not None:
        first = ({"role": "system", "content": args.system_prompt},)
    if args.quick is not None:
        say([*first, {"role": "user", "content": with_piped_text([args.quick])[0]}])
    else:
        Conversation(say, (ServerError,), first).run()
    return 0


# Asking a server, here and in `octavo complete`


def add_remote_flags(parser: CommandParser, quick: str, *, max_tokens: str) -> None:
    """quick: what -q takes."""
    parser.add_argument("--url", default=DEFAULT_URL, help=f"the server's API (default: {DEFAULT_URL})")
    text = "the model's name on the server; default: the first that is served"
    parser.takes_model(text, flags=("--model-name", "--model"), is_needed=False)
    parser.add_argument("--api-key", metavar="KEY", help="the server's key; default: OPENAI_API_KEY, or none")
    parser.add_argument("-q", "--quick", metavar=quick.upper(), help=f"answer this one {quick} and exit")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the seed")
    add_sampling_flags(parser, _NOT_FLAGS, max_tokens=max_tokens)


@dataclass(frozen=True, slots=True)
class Remote:
    """A server's model and its sampling options. A seed among them is for the first answer; later answers count up
    from it."""

    api: ServerApi
    model: str
    options: dict[str, Any]
    turns: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> Remote:
        """Ask the server for its models first, so that a missing server is noticed before the user types."""
        api = ServerApi(args.url, args.api_key if args.api_key is not None else env.openai_api_key())
        served = api.models()
        model = args.model_name or str(served[0]["id"])
        recommended = next((one.get("default_sampling_params") for one in served if one["id"] == model), None)
        return cls(api, model, {**_for_people(recommended, args.verbose), **sampling_options(args)})

    def show(self, path: str, fields: dict[str, Any], text_of: Callable[[dict[str, Any]], str | None]) -> str:
        """Stream the answer; Ctrl-C stops it. text_of: a choice's new text. Returns the text shown."""
        body = {"model": self.model, "stream_options": {"include_usage": True}, **self.options, **fields}
        turn = next(self.turns)
        if "seed" in body:
            body["seed"] = seed_of(body["seed"], turn)
        said: list[str] = []
        timing, shown = _Timing(), TerminalText(sys.stdout)
        try:
            with closing(self.api.events(path, body)) as chunks:
                for piece in timing.pieces(chunks, text_of):
                    said.append(piece)
                    shown.write(piece)
                    shown.flush()
        except KeyboardInterrupt:
            timing.ending = "stopped"
        finally:
            if said and not said[-1].endswith("\n"):
                print(flush=True)
        if sys.stderr.isatty():
            _print_dim(timing.line())
        elif timing.ending:
            print(f"octavo: the answer was {timing.ending}", file=sys.stderr)
        return "".join(said)


def _for_people(recommended: object, is_told: bool) -> dict[str, Any]:
    """Sampling options for an Octavo server whose model has no recommendations; other servers keep their own."""
    if not isinstance(recommended, dict) or any(name in recommended for name in RECOMMENDED):
        return {}
    seed = fresh_seed()
    if is_told:
        print(f"octavo: --seed {seed} reproduces these answers", file=sys.stderr)
    return {**FOR_PEOPLE, "seed": seed}


class _Timing:
    """Times and token count of one answer."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._first: float | None = None
        self._num_tokens: int | None = None
        self.ending: str | None = None

    def pieces(
        self, chunks: Iterator[dict[str, Any]], text_of: Callable[[dict[str, Any]], str | None]
    ) -> Iterator[str]:
        for chunk in chunks:
            if chunk.get("usage"):
                self._num_tokens = chunk["usage"].get("completion_tokens")
            for choice in chunk.get("choices") or ():
                if (reason := choice.get("finish_reason")) in ("length", "repetition"):
                    limit = "cut at the token limit; --max-tokens may raise it"
                    self.ending = limit if reason == "length" else REPEATED
                if text := text_of(choice):
                    if self._first is None:
                        self._first = time.perf_counter()
                    yield text

    def line(self) -> str:
        now = time.perf_counter()
        first = now if self._first is None else self._first
        parts = [self.ending] if self.ending else []
        if self._num_tokens is not None:
            parts.append(f"{self._num_tokens:,} tokens")
            if self._num_tokens > 1 and now > first:
                parts.append(f"{(self._num_tokens - 1) / (now - first):,.1f} tok/s")
        parts.append(f"first text after {first - self._begin:.3f} s")
        return ", ".join(parts)


def _print_dim(text: str) -> None:
    from rich.console import Console  # 60 ms to import, so only when used

    Console(stderr=True, highlight=False, markup=False).print(text, style="dim")
