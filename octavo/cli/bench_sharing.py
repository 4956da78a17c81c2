"""octavo bench sharing: what samples and beams of one prompt save by sharing its blocks: memory, reads and time.

Memory is counted without a model, beside the PagedAttention paper's figures. With
a model, the time of a step is measured too, against separate requests.

octavo bench sharing --n 2,4,6 --beam-width 2,4,6 --plot sharing.html
octavo bench sharing smollm2 --n 1,4,16 --input-len 1000 --output-len 64
"""

from __future__ import annotations

import argparse
import random
import time
from typing import TYPE_CHECKING

from octavo.cli.flags import (
    add_engine_flags,
    add_flags,
    check_counts,
    check_not_read,
    engine_options,
    numbers_of,
    vocab_size,
)
from octavo.cli.parser import CommandParser
from octavo.cli.terminal_text import beside_one_another
from octavo.cli.written_files import check_plot, write_json, write_plot
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.bench.sharing import Saving
    from octavo.bench.sharing_time import Timing

COMMON = (
    *("--model", "--n", "--beam-width", "--num-prompts", "--seed", "--block-size", "--input-len", "--output-len"),
    *("--num-iters", "--output-json", "--plot", "--load-format", "--backend"),
)
MOST_SAMPLES = 256
# Here --seed is the workload's. Samples share what they forked from, with or without a prefix cache.
_NOT_FLAGS = frozenset({"seed", "enable_prefix_caching", "event_log_size"})
_FLAGS = {
    "n": ("N[,N...]", "1,2,4,6,16,32", "samples of each prompt, one run each"),
    "beam-width": ("N[,N...]", "2,4,6", "beams of each prompt, one run each; their candidates are made up"),
    "num-prompts": ("N", 100, "prompts of ShareGPT's lengths, and of Alpaca's, to count memory with"),
    "seed": ("N", 0, "draws their lengths"),
    "input-len": ("N", 1000, "prompt tokens, to time the model with"),
    "output-len": ("N", 64, "new tokens per sequence, to time the model with"),
    "num-iters": ("N", 3, "timed calls of each kind, after one that warms up"),
    "output-json": ("FILE", None, "write the result as JSON"),
    "plot": ("FILE", None, "draw the memory saved; .html, .svg, or .png, which needs the extra plot"),
}


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model("the model whose steps are timed; default: none", is_needed=False)
    add_flags(parser, _FLAGS)
    add_engine_flags(parser, _NOT_FLAGS)


def run(args: argparse.Namespace) -> int:
    counts, widths, block_size = _check(args)
    from octavo.bench.sharing import DATASETS, count_saving, table

    savings = []
    for name, lengths in DATASETS.items():
        rng = random.Random(args.seed)
        workload = [lengths.draw(rng) for _ in range(args.num_prompts)]
        savings += [count_saving(name, workload, n, block_size) for n in counts]
        savings += [count_saving(name, workload, width, block_size, is_search=True) for width in widths]
    savings.sort(key=lambda one: one.is_search)
    print(*beside_one_another(table(savings)), sep="\n", flush=True)
    timings = _time(args, counts) if args.model is not None else {}
    _keep(args, savings, timings)
    return 0


def _check(args: argparse.Namespace) -> tuple[list[int], list[int], int]:
    """Checks that need only the flags -> the numbers of samples and of beams, and the block size."""
    for flag, path in (("--output-json", args.output_json), ("--plot", args.plot)):
        check_not_read(flag, path, {"--model": args.model})
    check_counts(args, "num_prompts", "input_len", "num_iters")
    check_counts(args, "output_len", least=4)  # a step's time is that between two that decode
    counts, widths = _whole_numbers("--n", args.n), _whole_numbers("--beam-width", args.beam_width)
    check_plot(args.plot)
    return counts, widths, _block_size(args)


def _whole_numbers(flag: str, given: str) -> list[int]:
    numbers = numbers_of(flag, given, f"whole numbers from 1 to {MOST_SAMPLES}", 1, MOST_SAMPLES)
    if any(number != int(number) for number in numbers):
        raise ConfigError(f"{flag} is {given!r}, allowed are whole numbers from 1 to {MOST_SAMPLES}, joined by commas")
    return sorted({int(number) for number in numbers})


def _block_size(args: argparse.Namespace) -> int:
    """Without a model, the only engine option that matters."""
    from octavo.config import CacheConfig

    options = engine_options(args, _NOT_FLAGS)
    given = {"block_size": options.pop("block_size")} if "block_size" in options else {}
    if args.model is None and options:
        flag = "--" + next(iter(options)).replace("_", "-")
        raise ConfigError(f"{flag} is for a model's engine, and no model is given: name one, or drop the flag")
    return CacheConfig(**given).block_size


def _time(args: argparse.Namespace, counts: list[int]) -> dict[int, list[Timing]]:
    from octavo.bench.sharing_time import time_samples, timing_table
    from octavo.llm import LLM

    num_tokens = vocab_size(args)
    options = engine_options(args, _NOT_FLAGS)
    with LLM(args.model, enable_prefix_caching=False, **options) as llm:
        lens = args.input_len, args.output_len
        timings = {n: time_samples(llm, n, *lens, args.num_iters, num_tokens) for n in counts}
    print("", *beside_one_another(timing_table(timings)), sep="\n", flush=True)
    print(f"{args.model}: n samples of a prompt of {lens[0]} tokens, and n requests of it that share nothing")
    return timings


def _keep(args: argparse.Namespace, savings: list[Saving], timings: dict[int, list[Timing]]) -> None:
    if args.output_json:
        names = ("model", "num_prompts", "seed", "input_len", "output_len", "num_iters")
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "workload": {name: getattr(args, name) for name in names},
            "memory": [one.record() for one in savings],
            "time": [one.record() for pair in timings.values() for one in pair],
        }
        write_json(args.output_json, result)
    if args.plot:
        from octavo.bench.sharing import table
        from octavo.bench.sharing_plot import NOTE, draw

        write_plot(args.plot, draw(savings, "Memory saved by sharing the prompt's blocks"), table(savings), NOTE)
