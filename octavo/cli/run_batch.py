"""Answer a file of calls in OpenAI's batch format, without a server.

After an interruption run it again: lines that have a result are skipped.

octavo run-batch -i in.jsonl -o out.jsonl --model smollm2
octavo run-batch -i in.jsonl -o out.jsonl --model Qwen/Qwen3-0.6B --served-model-name gpt-4o --max-num-seqs 256
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from octavo.cli.flags import (
    add_engine_flags,
    add_flags,
    add_section_flags,
    check_counts,
    check_not_read,
    engine_options,
)
from octavo.cli.interrupts import asyncios_ctrl_c
from octavo.cli.parser import CommandParser
from octavo.cli.run import warn_if_slow
from octavo.engine.progress import Progress
from octavo.server.batch_files import STANDARD_STREAM, BatchInput, BatchOutput, BatchStream, Results
from octavo.server.named_things import check_named_things
from octavo.server.settings import LIMITS, ServerSettings

#: server settings that apply to batch calls
_SETTINGS = (
    *("trust_request_chat_template", "return_tokens_as_token_ids", "tool_call_parser", "enable_auto_tool_choice"),
    *LIMITS,
)


COMMON = (
    *("-i", "-o", "--model", "--served-model-name", "--max-inflight", "--max-model-len", "--max-num-seqs"),
    *("--kv-cache-memory-bytes", "--gpu-memory-utilization", "--dtype", "--backend"),
)


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model()
    calls, results = "calls, one per line; -: standard input", "results are appended, one per line; -: standard output"
    parser.add_argument("-i", "--input-file", required=True, metavar="FILE", help=calls)
    parser.add_argument("-o", "--output-file", required=True, metavar="FILE", help=results)
    help_names = "model names that calls may use; default: that of --model"
    parser.add_argument("--served-model-name", nargs="+", metavar="NAME", help=help_names)
    inflight = "maximum number of calls in the engine, running or waiting; default: twice --max-num-seqs"
    add_flags(parser, {"max-inflight": ("N", None, inflight)})
    group = parser.add_argument_group("limits of a call, as in octavo serve")
    add_section_flags(group, ServerSettings, _SETTINGS.__contains__)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    check_counts(args, "max_inflight")
    settings = ServerSettings(
        served_model_name=tuple(args.served_model_name or (args.model,)),
        enable_request_id_headers=True,
        max_stored_responses=0,  # nobody could ask for them
        **{name: getattr(args, name) for name in _SETTINGS if hasattr(args, name)},
    )
    check_named_things(settings)
    check_not_read("--output-file", args.output_file, {"--input-file": args.input_file, "--model": args.model})
    is_stream = args.output_file == STANDARD_STREAM
    with (
        BatchInput(args.input_file) as asked,
        BatchStream() if is_stream else BatchOutput(args.output_file, asked) as results,
    ):
        num_before = len(results.done & asked.places.keys())
        if not asked.places:
            print(f"{args.input_file} holds no line, so there is nothing to answer", file=sys.stderr)
        elif num_before == len(asked.places):
            print(f"all {num_before:,} lines have a result in {args.output_file}", file=sys.stderr)
        else:
            if num_before:
                print(f"{num_before:,} of {len(asked.places):,} lines have a result already", file=sys.stderr)
            _answer(args, settings, asked, results)
        if results.num_failures:
            num = results.num_failures
            print("1 result is an error" if num == 1 else f"{num:,} results are errors", file=sys.stderr)
        return 1 if results.num_failures else 0


def _answer(args: argparse.Namespace, settings: ServerSettings, asked: BatchInput, results: Results) -> None:
    from octavo.async_llm import AsyncLLM  # imported after all checks that do not need it
    from octavo.server.app import create_app
    from octavo.server.batch import run_batch

    num_before, num_tokens, begin = len(results.done & asked.places.keys()), 0, time.perf_counter()
    llm = AsyncLLM(args.model, **engine_options(args))
    if not hasattr(args, "backend"):
        warn_if_slow(dict(llm.model_info.card)["backend"])
    try:
        max_inflight = args.max_inflight or 2 * llm.model_info.max_num_seqs
        with Progress(len(asked.places) - num_before, None, is_shown=True) as progress:

            def count(num_new: int) -> None:
                nonlocal num_tokens
                num_tokens += num_new
                progress.advance(num_new)

            with asyncios_ctrl_c():
                asyncio.run(run_batch(create_app(llm, settings), asked, results, max_inflight, count))
    finally:
        llm.shutdown()
        num_done = len(results.done & asked.places.keys())
        seconds = time.perf_counter() - begin
        speed = f"{num_tokens:,} tokens in {seconds:.1f} s: {num_tokens / seconds:,.1f} tok/s"
        num_left = len(asked.places) - num_done
        how = ", and the same command goes on with them" if isinstance(results, BatchOutput) else ""
        rest = f"; {num_left:,} are left{how}" if num_left else ""
        print(f"{num_done - num_before:,} lines, {speed}{rest}", file=sys.stderr)
