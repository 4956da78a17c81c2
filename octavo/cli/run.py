"""octavo run MODEL [PROMPT ...]: answer prompts, many at once, or chat.

octavo run smollm2 "Why is the sky blue?" "And grass?"  answers, streamed
octavo run smollm2                                      a chat, on a terminal
octavo run smollm2 "Sum this up:" < report.txt          a prompt and a text
octavo run smollm2 -i prompts.jsonl -o answers.jsonl    a batch
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from octavo.cli.answers import Cuts, JsonLines, LiveText, gather
from octavo.cli.flags import add_engine_flags, check_not_read, engine_options
from octavo.cli.parser import CommandParser
from octavo.cli.run_requests import RequestReader, RunRequest
from octavo.cli.sampling_flags import add_sampling_flags, for_people, fresh_seed, overlay, sampling_options
from octavo.cli.standard_input import read_standard_input, with_piped_text
from octavo.cli.terminal_text import TerminalText
from octavo.errors import InvalidRequestError
from octavo.observe.tally import Tally
from octavo.outputs import RequestOutput
from octavo.sampling_params import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.engine.progress import Progress
    from octavo.llm import LLM

ONE_SHOT_MAX_TOKENS = 1024  # no user is there to press Ctrl-C
RAW_MAX_TOKENS = 128  # a base model rarely stops

COMMON = (
    *("-i", "-o", "--system", "--raw", "--temperature", "--top-p", "--max-tokens", "--seed", "--n", "--stop"),
    *("--max-model-len", "--backend", "--report", "-v"),
)
# --model is the first word; --seed seeds the requests, including their n samples.
_NOT_FLAGS = frozenset({"seed", "skip_tokenizer_init"})


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model(takes_prompts=True)
    prompts = "prompts, one per line, as text or JSONL; -: standard input"
    parser.add_argument("-i", "--input", metavar="FILE", help=prompts)
    parser.add_argument("-o", "--output", metavar="FILE", help="write answers as JSONL, in the order of prompts")
    parser.add_argument("--raw", "--no-chat", action="store_true", help="complete raw prompts, without chat template")
    parser.add_argument("--system", metavar="TEXT", help="a system message before every prompt or chat")
    parser.add_argument("--report", action="store_true", help="print a report of time and memory afterwards")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the start-up card and the seed")
    limits = f"{ONE_SHOT_MAX_TOKENS:,}, {RAW_MAX_TOKENS} without chat template, in a chat up to the context length"
    add_sampling_flags(parser, max_tokens=limits)
    add_engine_flags(parser, _NOT_FLAGS)


def run(args: argparse.Namespace) -> int:
    if args.input and args.prompt:
        raise InvalidRequestError("prompts were given as arguments and with --input, allowed is one of them")
    is_chat = not args.prompt and not args.input and sys.stdin.isatty()
    if is_chat and (args.output or args.raw):
        raise InvalidRequestError("--output and --raw need prompts, got none: give them as arguments or with --input")
    source = None if is_chat or args.prompt else args.input or "-"
    check_not_read("--output", args.output, {"--input": args.input, "the prompt": source or "-", "MODEL": args.model})
    overlay(SamplingParams(max_tokens=None), sampling_options(args))  # check before anything is read or loaded
    prompts = with_piped_text(args.prompt) if args.prompt else []
    lines = None if source is None else _read_lines(source)
    if lines is not None:
        RequestReader(lambda messages: [], SamplingParams(max_tokens=None)).from_lines(lines, _name_of(source))

    from octavo.engine.options import engine_config
    from octavo.llm import LLM  # imported after all checks that do not need it
    from octavo.text.template_process import template_processes

    if not args.raw:
        template_processes().warm()  # starts while the model loads
    num_requests = len(prompts) if lines is None else len(lines)
    options = _engine_options(args, is_alone=is_chat or num_requests == 1)
    with LLM(args.model, **options) as llm:
        _check_generates(llm, args.model)
        if args.verbose or args.report or is_chat:
            _print_table("engine", llm.card)
        elif not hasattr(args, "backend"):
            warn_if_slow(dict(llm.card)["backend"])
        tally = Tally(llm.events) if args.report else None
        reader = _reader(llm, args, is_chat)
        if is_chat:
            from octavo.cli.conversation import chat

            chat(llm, reader)
        else:
            requests = reader.from_texts(prompts) if lines is None else reader.from_lines(lines, _name_of(source))
            _write(llm, requests, args.output) if args.output else _show(llm, requests)
        if tally is not None:
            _print_table("report", tally.report().lines())
            _print_memory(llm, engine_config(model=args.model, **options))
    return 0


def _engine_options(args: argparse.Namespace, is_alone: bool) -> dict[str, Any]:
    """is_alone: one stream at a time. Its steps wait for memory, so int16 activations cost the CPU little."""
    options = engine_options(args, _NOT_FLAGS)
    if is_alone and sampling_options(args).get("n", 1) == 1:
        options.setdefault("activation_dtype", "int16")
    return options


def _check_generates(llm: LLM, model: str) -> None:
    if "generate" not in (tasks := llm.get_supported_tasks()):
        raise InvalidRequestError(
            f"{model} generates no text; its tasks are {', '.join(tasks)}: in Python call LLM.embed, classify, score, "
            f"or start octavo serve {model} and send texts to /v1/embeddings, /classify or /v1/score"
        )


def _reader(llm: LLM, args: argparse.Namespace, is_chat: bool) -> RequestReader:
    tokenizer = llm.get_tokenizer()
    uses_chat = not args.raw and tokenizer.chat_template is not None
    if args.system is not None and not uses_chat:
        raise InvalidRequestError("--system needs a chat template; this model has none, or --raw was given")
    if not uses_chat and not args.raw:
        print(
            f"octavo: {args.model} has no chat template: it continues text instead of answering questions",
            file=sys.stderr,
        )
    defaults = llm.get_default_sampling_params()
    most = RAW_MAX_TOKENS if not uses_chat else None if is_chat else ONE_SHOT_MAX_TOKENS
    if defaults.max_tokens != SamplingParams().max_tokens:  # its makers, or --override-generation-config, say how many
        most = defaults.max_tokens
    params = for_people(defaults).replace(
        max_tokens=most, output_kind=RequestOutputKind.FINAL_ONLY if args.output else RequestOutputKind.DELTA
    )
    params = overlay(params, sampling_options(args))
    seed = fresh_seed() if params.seed is None else params.seed
    if args.verbose and not params.is_greedy:
        print(f"octavo: --seed {seed} reproduces these answers", file=sys.stderr)
    encode = tokenizer.encode_chat if uses_chat else None
    return RequestReader(encode, params.replace(seed=None), args.system, seed)


def _show(llm: LLM, requests: list[RunRequest]) -> None:
    """Stream answers as text to standard output."""
    text, cuts = LiveText(TerminalText(sys.stdout), len(requests)), Cuts()
    for index, answer in gather(requests, _stream(llm, requests)):
        text.update(index, answer)
        cuts.note(index, answer)
    cuts.tell(sum(request.sampling_params.n for request in requests))


def _write(llm: LLM, requests: list[RunRequest], path: str) -> None:
    """Answers as JSONL, a progress bar and a summary on standard error."""
    from octavo.engine.progress import Progress

    stream = _stream(llm, requests)  # refuses bad prompts before the file is touched
    begin = time.perf_counter()
    num_tokens, cuts = 0, Cuts()
    with _destination(path) as file, Progress(len(requests), llm.stats, is_shown=True) as progress:
        lines = JsonLines(file)
        for index, answer in gather(requests, _counted(stream, progress)):
            lines.update(index, answer)
            num_tokens += answer.num_tokens
            cuts.note(index, answer)
    seconds = time.perf_counter() - begin
    rate = num_tokens / seconds
    print(f"{len(requests):,} prompts, {num_tokens:,} tokens in {seconds:.1f} s: {rate:,.1f} tok/s", file=sys.stderr)
    cuts.tell(sum(request.sampling_params.n for request in requests))


def _counted(stream: Iterator[RequestOutput], progress: Progress) -> Iterator[RequestOutput]:
    for output in stream:
        progress.update(output)
        yield output


def _stream(llm: LLM, requests: list[RunRequest]) -> Iterator[RequestOutput]:
    return llm.stream([request.prompt for request in requests], [request.sampling_params for request in requests])


def _read_lines(path: str) -> list[str]:
    if path == "-":
        return read_standard_input().split("\n")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--input {path} cannot be read: {error}") from None


def _name_of(source: str | None) -> str:
    return "standard input" if source in (None, "-") else str(source)


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
    """Warn about a reference backend that was not requested: it is many times slower."""
    if backend.startswith("reference"):
        print(f"octavo: backend {backend}", file=sys.stderr)


def _print_memory(llm: LLM, config: EngineConfig) -> None:
    """Measured after the run, beside the plan for the largest steps."""
    from octavo.cli.memory_table import measured_table
    from octavo.worker.plan import planned

    lines = measured_table(planned(config), llm.memory())
    print("\nmemory", *(f"  {line}" for line in lines), sep="\n", file=sys.stderr)


def _print_table(title: str, lines: list[tuple[str, str]]) -> None:
    """Aligned labels and texts, on standard error so that answers can be piped."""
    width = max(len(label) for label, _ in lines)
    print(f"\n{title}", *(f"  {label:<{width}}  {text}" for label, text in lines), sep="\n", file=sys.stderr)
