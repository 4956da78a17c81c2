"""octavo run MODEL [PROMPT ...]: answer prompts, many at once, or chat.

octavo run smollm2 "Why is the sky blue?" "Who wrote Faust?"      answers, streamed in order
octavo run smollm2                                                a chat, on a terminal
octavo run smollm2 -i prompts.jsonl -o answers.jsonl              a batch
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from octavo.cli.answers import JsonLines, LiveText, gather
from octavo.cli.asks import Ask, AskReader
from octavo.cli.flags import add_engine_flags, engine_options
from octavo.cli.sampling_flags import add_sampling_flags, overlay, sampling_options
from octavo.errors import InvalidRequestError
from octavo.observe.recorder import Recorder
from octavo.outputs import RequestOutput
from octavo.sampling_params import RequestOutputKind

if TYPE_CHECKING:
    from octavo.engine.progress import Progress
    from octavo.llm import LLM

RAW_MAX_TOKENS = 128  # a base model does not stop by itself

# --model is the positional; --seed is each request's own, which also fixes what n samples draw.
_NOT_FLAGS = frozenset({"model", "seed", "skip_tokenizer_init"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "octavo run MODEL [PROMPT ...] [options]"
    parser.add_argument("model", help="a packaged model's name (smollm2), a folder, a hub id or a .gguf file")
    parser.add_argument("prompt", nargs="*", help="prompts to answer at once; none: chat, or read a pipe")
    parser.add_argument("-i", "--input", metavar="FILE", help="prompts, one a line, as text or JSONL; - is a pipe")
    parser.add_argument("-o", "--output", metavar="FILE", help="write answers as JSONL, in the order of prompts")
    parser.add_argument(
        "--raw", "--no-chat", action="store_true", help="complete prompts as they are, without chat template"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message before every prompt or chat")
    parser.add_argument("--report", action="store_true", help="show afterwards what the run did with time and memory")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the start-up card")
    add_sampling_flags(parser)
    add_engine_flags(parser, _NOT_FLAGS)


def run(args: argparse.Namespace) -> int:
    if args.input and args.prompt:
        raise InvalidRequestError("prompts were given as arguments and with --input, allowed is one of them")
    is_chat = not args.prompt and not args.input and sys.stdin.isatty()
    if is_chat and (args.output or args.raw):
        raise InvalidRequestError("--output and --raw need prompts, got none: give them as arguments or with --input")
    lines = None if is_chat or args.prompt else _read_lines(args.input)

    from octavo.engine.template_process import template_processes
    from octavo.llm import LLM  # after everything that can be refused without it

    if not args.raw:
        template_processes().warm()  # it starts while the model loads
    with LLM(args.model, **engine_options(args, _NOT_FLAGS)) as llm:
        if args.verbose or args.report or is_chat:
            _print_table("engine", llm.card)
        elif not hasattr(args, "backend"):
            warn_if_slow(dict(llm.card)["backend"])
        recorder = Recorder(llm.events) if args.report else None
        reader = _reader(llm, args)
        if is_chat:
            from octavo.cli.run_chat import chat

            chat(llm, reader)
        else:
            asks = _asks(reader, args, lines)
            _write(llm, asks, args.output) if args.output else _show(llm, asks)
        if recorder is not None:
            _print_table("report", recorder.report().lines())
    return 0


def _asks(reader: AskReader, args: argparse.Namespace, lines: list[str] | None) -> list[Ask]:
    if lines is None:
        return [reader.from_text(prompt) for prompt in args.prompt]
    return reader.from_lines(lines, args.input or "standard input")


def _reader(llm: LLM, args: argparse.Namespace) -> AskReader:
    tokenizer = llm.get_tokenizer()
    uses_chat = not args.raw and "default" in tokenizer.chat_templates
    params = llm.get_default_sampling_params().replace(
        max_tokens=None if uses_chat else RAW_MAX_TOKENS,
        output_kind=RequestOutputKind.FINAL_ONLY if args.output else RequestOutputKind.DELTA,
    )
    if args.system is not None and not uses_chat:
        raise InvalidRequestError("--system needs a chat template; this model has none, or --raw was given")
    return AskReader(tokenizer.encode_chat if uses_chat else None, overlay(params, sampling_options(args)), args.system)


def _show(llm: LLM, asks: list[Ask]) -> None:
    """Answers as text on standard output, as they come."""
    text = LiveText(sys.stdout, len(asks))
    for index, answer in gather(asks, _stream(llm, asks)):
        text.update(index, answer)


def _write(llm: LLM, asks: list[Ask], path: str) -> None:
    """Answers as JSONL, a progress bar and a summary on standard error."""
    from octavo.engine.progress import Progress

    stream = _stream(llm, asks)  # refuses bad prompts before the file is touched
    begin = time.perf_counter()
    num_tokens = 0
    with _destination(path) as file, Progress(len(asks), llm.stats, is_shown=True) as progress:
        lines = JsonLines(file)
        for index, answer in gather(asks, _counted(stream, progress)):
            lines.update(index, answer)
            num_tokens += answer.num_tokens
    seconds = time.perf_counter() - begin
    rate = num_tokens / seconds
    print(f"{len(asks):,} prompts, {num_tokens:,} tokens in {seconds:.1f} s: {rate:,.1f} tok/s", file=sys.stderr)


def _counted(stream: Iterator[RequestOutput], progress: Progress) -> Iterator[RequestOutput]:
    for output in stream:
        progress.update(output)
        yield output


def _stream(llm: LLM, asks: list[Ask]) -> Iterator[RequestOutput]:
    return llm.stream([ask.prompt for ask in asks], [ask.sampling_params for ask in asks])


def _read_lines(path: str | None) -> list[str]:
    if path is None or path == "-":
        return sys.stdin.readlines()
    try:
        with open(path, encoding="utf-8") as file:
            return file.readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--input {path} cannot be read: {error}") from None


@contextlib.contextmanager
def _destination(path: str) -> Iterator[TextIO]:
    if path == "-":
        yield sys.stdout
        return
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise InvalidRequestError(f"--output {path} cannot be written: {error}") from None
    with file:
        yield file


def warn_if_slow(backend: str) -> None:
    """Nobody asked for the reference backend: what it stands in for should work, and is many times faster."""
    if backend.startswith("reference"):
        print(f"octavo: backend {backend}", file=sys.stderr)


def _print_table(title: str, lines: list[tuple[str, str]]) -> None:
    """Label and text, aligned; on standard error, so that answers can be piped."""
    width = max(len(label) for label, _ in lines)
    print(f"\n{title}", *(f"  {label:<{width}}  {text}" for label, text in lines), sep="\n", file=sys.stderr)
