"""The requests that `octavo bench serve` sends, built from its flags: shape, number and rate."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from octavo.bench import datasets
from octavo.bench.datasets import SAFE_VOCAB_SIZE, BenchRequest
from octavo.bench.load import RampUp
from octavo.bench.workloads import NAMED
from octavo.cli.bench_vllm_flags import dataset_name
from octavo.cli.flags import add_flags, check_counts, numbers_of
from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from octavo.text.tokenizer import Tokenizer

FIXED = (*NAMED, "stall")
FILES = ("sharegpt", "custom")
DATASETS = ("random", *FIXED, *FILES)
DEFAULT_NUM_PROMPTS, DEFAULT_INPUT_LEN, DEFAULT_OUTPUT_LEN, DEFAULT_LONG_LEN = 1000, 1024, 128, 8192
STALL_RATE, STALL_EVERY = 8.0, 1.0
LEAST_LONG_PROMPTS, MOST_LONG_PROMPTS = 64, 256  # beyond these, prompts repeat, with a warning

#: flag -> the datasets it applies to
_GOES_WITH = {
    "num_prompts": ("random", *FILES),
    "dataset_path": FILES,
    "input_len": ("random",),
    "output_len": ("random", *FILES),
    "random_input_len": ("random",),
    "random_output_len": ("random",),
    "random_range_ratio": ("random",),
    "random_prefix_len": ("random",),
    "sharegpt_output_len": ("sharegpt",),
    "custom_output_len": ("custom",),
    **dict.fromkeys(datasets.OF_FILES, FILES),
}
_FLAGS = {
    "dataset-path": ("FILE", None, "ShareGPT's JSON, or JSONL with one prompt per line"),
    "num-prompts": ("N", None, "requests (1000)"),
    "input-len": ("N", None, "the same as --random-input-len"),
    "output-len": ("N", None, "the same as --random-output-len, --sharegpt-output-len or --custom-output-len"),
    "random-input-len": ("N", None, "prompt tokens (1024)"),
    "random-output-len": ("N", None, "new tokens (128)"),
    "random-prefix-len": ("N", None, "tokens of a prefix that all prompts share (0)"),
    "random-range-ratio": ("X", None, "lengths are from (1 - X) to (1 + X) times the mean (0)"),
    "sharegpt-output-len": ("N", None, "new tokens; default: the length of the answer in the file"),
    "custom-output-len": ("N", None, "new tokens; default: the line's output_tokens, else 256"),
    "vocab-size": ("N", None, "drawn token ids are below it; default: that of --tokenizer, else 30000, which is safe"),
    "tokenizer": ("NAME", None, "folder, GGUF file or hub id; for sharegpt's lengths and for drawn prompts as text"),
    "seed": ("N", 0, "draws prompts and arrivals"),
}


@dataclass(frozen=True, slots=True)
class Dataset:
    """The requests of each request rate. is_drawn: each rate has new token ids of fixed lengths; requests from a file
    are the same for all rates. ramp_up: the rate of the only run, in place of `rates`."""

    rates: tuple[float, ...]
    ramp_up: RampUp | None
    requests: Callable[[int], list[BenchRequest]]
    long_requests: Callable[[int], list[BenchRequest]]
    long_every: float
    is_drawn: bool


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests")
    group.add_argument(
        "--dataset-name",
        type=dataset_name(DATASETS),
        metavar="{" + ",".join(DATASETS) + "}",
        default="random",
        help="random: lengths around a mean; single to longctx: fully fixed workloads; stall: 240 short chats, 8 per "
        "second, plus a prompt of 8192 tokens every second; sharegpt, custom: read from --dataset-path",
    )
    add_flags(group, _FLAGS)
    for name, text in datasets.OF_FILES.items():
        group.add_argument("--" + name.replace("_", "-"), action="store_true", default=None, help=text)


def check_dataset_flags(args: argparse.Namespace) -> None:
    """Refuse flags that the dataset does not use; copy --input-len and --output-len to their longer names."""
    name = args.dataset_name
    for flag, names in _GOES_WITH.items():
        if getattr(args, flag) is not None and name not in names:
            raise ConfigError(
                f"--{flag.replace('_', '-')} does not go with --dataset-name {name}; it goes with {', '.join(names)}"
            )
    if name in FILES and args.dataset_path is None:
        raise ConfigError(f"--dataset-name {name} needs --dataset-path FILE")
    for short, long in (("input_len", f"{name}_input_len"), ("output_len", f"{name}_output_len")):
        given = getattr(args, short)
        if given is not None and getattr(args, long) is not None:
            raise ConfigError(f"--{short} and --{long} are both given: drop one".replace("_", "-"))
        if given is not None:
            setattr(args, long, given)
    lens = ("random_input_len", "random_output_len", "sharegpt_output_len", "custom_output_len", "long_prefill_len")
    check_counts(args, *lens)
    check_counts(args, "random_prefix_len", least=0)
    check_counts(args, "vocab_size", least=100)
    if args.long_prefill_len is not None and _long_every(args) == math.inf:
        raise ConfigError("--long-prefill-len needs --long-prefill-every SECONDS, or --dataset-name stall")


def open_dataset(args: argparse.Namespace) -> Dataset:
    tokenizer = _tokenizer(args)
    vocab_size = args.vocab_size or (tokenizer.vocab_size if tokenizer is not None else None)
    ramp_up, every, rates = _ramp_up(args), _long_every(args), _rates(args)

    @cache  # the first set is drawn before the server is known to answer
    def draw(point: int) -> list[BenchRequest]:
        return _written(args, _draw(args, vocab_size, tokenizer, point), tokenizer)

    def draw_long(point: int) -> list[BenchRequest]:
        if math.isinf(every):
            return []
        num_prompts = len(draw(point))
        seconds = num_prompts / rates[point] if ramp_up is None else sum(1 / r for r in ramp_up.rates(num_prompts))
        # Enough for twice that time, in case the server falls behind; for a minute if all requests arrive at once.
        num_long = max(LEAST_LONG_PROMPTS, min(MOST_LONG_PROMPTS, math.ceil((2 * seconds or 60.0) / every)))
        length = args.long_prefill_len or DEFAULT_LONG_LEN
        drawn = datasets.long_prompts(num_long, length, vocab_size or SAFE_VOCAB_SIZE, args.seed + point)
        return _written(args, drawn, tokenizer)

    return Dataset(rates, ramp_up, draw, draw_long, every, is_drawn=args.dataset_name not in FILES)


def _written(args: argparse.Namespace, requests: list[BenchRequest], tokenizer: Tokenizer | None) -> list[BenchRequest]:
    """The requests, as text if the backend takes only text."""
    if args.backend != "openai-chat" or all(isinstance(request.prompt, str) for request in requests):
        return requests
    if tokenizer is None:
        raise ConfigError(
            f"--backend openai-chat sends text, and --dataset-name {args.dataset_name} draws token ids: "
            "give --tokenizer to write them as text, or use --backend openai"
        )
    return datasets.as_text(requests, tokenizer.decode)


def _draw(
    args: argparse.Namespace, vocab_size: int | None, tokenizer: Tokenizer | None, point: int
) -> list[BenchRequest]:
    name, seed = args.dataset_name, args.seed
    num_prompts = args.num_prompts or DEFAULT_NUM_PROMPTS
    if name == "random":
        return datasets.random_requests(
            num_prompts,
            args.random_input_len or DEFAULT_INPUT_LEN,
            args.random_output_len or DEFAULT_OUTPUT_LEN,
            range_ratio=args.random_range_ratio or 0.0,
            prefix_len=args.random_prefix_len or 0,
            vocab_size=vocab_size or SAFE_VOCAB_SIZE,
            seed=seed + point,
        )
    if name in FIXED:
        if name == "stall":
            fixed = datasets.stall_requests(vocab_size or SAFE_VOCAB_SIZE)
        else:
            fixed = datasets.named_requests(name, vocab_size)
        return datasets.shifted(fixed, point, vocab_size) if point else fixed
    pick = datasets.Pick(num_prompts, seed, not args.disable_shuffle, not args.no_oversample)
    if name == "custom":
        return datasets.custom_requests(args.dataset_path, pick, args.custom_output_len)
    encode = None if tokenizer is None else tokenizer.encode
    return datasets.sharegpt_requests(args.dataset_path, pick, args.sharegpt_output_len, encode)


def _tokenizer(args: argparse.Namespace) -> Tokenizer | None:
    """--tokenizer; if one is needed and not given, the model's own, if this machine has it under that name."""
    is_needed = (args.dataset_name == "sharegpt" and args.sharegpt_output_len is None) or (
        args.backend == "openai-chat" and args.dataset_name not in FILES
    )
    name = args.tokenizer or (args.model if is_needed else None)
    if name is None:
        return None
    from octavo.text.tokenizer import named_tokenizer

    try:
        return named_tokenizer(name)
    except OctavoError as error:
        if args.tokenizer:
            raise
        raise ConfigError(
            f"no tokenizer was found under the model's name: {error}; name one with --tokenizer"
        ) from None


def _rates(args: argparse.Namespace) -> tuple[float, ...]:
    text: Any = args.request_rate
    if args.ramp_up_strategy is not None:
        return (math.inf,)
    if text is None:
        return (STALL_RATE if args.dataset_name == "stall" else math.inf,)
    return tuple(numbers_of("--request-rate", text, "numbers above 0 and inf", math.nextafter(0, 1), math.inf))


def _long_every(args: argparse.Namespace) -> float:
    if args.long_prefill_every is None:
        return STALL_EVERY if args.dataset_name == "stall" else math.inf
    every = float(args.long_prefill_every)
    if not every > 0:
        raise ConfigError(f"--long-prefill-every is {args.long_prefill_every}, allowed is above 0 (seconds)")
    return every


def _ramp_up(args: argparse.Namespace) -> RampUp | None:
    strategy = args.ramp_up_strategy
    for flag, rate in {"start": args.ramp_up_start_rps, "end": args.ramp_up_end_rps}.items():
        if strategy is None and rate is not None:
            raise ConfigError(f"--ramp-up-{flag}-rps needs --ramp-up-strategy, which is linear or exponential")
        if strategy is not None and rate is None:
            raise ConfigError(f"--ramp-up-strategy {strategy} needs --ramp-up-{flag}-rps, in requests per second")
    if strategy is None:
        return None
    if args.request_rate is not None:
        raise ConfigError(f"--request-rate {args.request_rate} and --ramp-up-strategy both set the rate: drop one")
    return RampUp(strategy, args.ramp_up_start_rps, args.ramp_up_end_rps)
