"""The requests that `octavo bench throughput` measures, built from its flags: token ids of exact lengths."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, get_args

from octavo.bench import datasets
from octavo.bench.workloads import NAMED, DatasetName, Work, ragged16, random_workload
from octavo.cli.bench_vllm_flags import dataset_name
from octavo.cli.flags import check_counts, number, vocab_size, whole_number
from octavo.errors import ConfigError

FILES = ("sharegpt", "custom")
DATASETS = (*get_args(DatasetName), *FILES)
_DRAWN = ("random", "ragged16")
DEFAULT_NUM_PROMPTS, DEFAULT_INPUT_LEN, DEFAULT_OUTPUT_LEN = 16, 128, 128

_HELP = (
    "random: lengths around a mean; ragged16: sixteen lengths in turn; single to longctx: fully fixed workloads; "
    "sharegpt, custom: read from --dataset-path; default: sharegpt if there is a --dataset-path, else random"
)
_Flag = tuple[tuple[str, ...], Callable[[str], Any], str, str]
#: a flag's names, of which the later ones are vLLM's for one data set each
_FLAGS: tuple[_Flag, ...] = (
    (("--dataset-path",), str, "FILE", "ShareGPT's JSON, or JSONL with one prompt per line"),
    (("--num-prompts",), whole_number, "N", "requests (16)"),
    (("--input-len", "--random-input-len"), whole_number, "N", "prompt tokens, for random (128)"),
    (
        ("--output-len", "--random-output-len", "--sharegpt-output-len", "--custom-output-len"),
        *(whole_number, "N"),
        "new tokens per sequence (128); with a file by default the length that it has for each answer",
    ),
    (("--random-prefix-len", "--prefix-len"), whole_number, "N", "tokens of a prefix that all prompts share (0)"),
    (("--random-range-ratio",), number, "X", "lengths are from (1 - X) to (1 + X) times the mean (0)"),
    (("--n",), whole_number, "N", "sequences sampled from each prompt (1)"),
    (("--seed",), whole_number, "N", "draws the prompts (0)"),
)
#: flag -> the data sets that it applies to
_GOES_WITH = {
    **dict.fromkeys(("num_prompts", "output_len", "n", "seed"), (*_DRAWN, *FILES)),
    **dict.fromkeys(("input_len", "random_prefix_len", "random_range_ratio"), ("random",)),
    **dict.fromkeys(("dataset_path", *datasets.OF_FILES), FILES),
}


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests")
    shown = "{" + ",".join(DATASETS) + "}"
    group.add_argument("--dataset-name", type=dataset_name(DATASETS), metavar=shown, help=_HELP)
    for (name, *others), kind, metavar, text in _FLAGS:
        also = "".join(f"; or {other}" for other in others)
        dest = group.add_argument(name, type=kind, metavar=metavar, help=text + also).dest
        for other in others:
            group.add_argument(other, type=kind, dest=dest, help=argparse.SUPPRESS)
    for name, text in datasets.OF_FILES.items():
        group.add_argument("--" + name.replace("_", "-"), action="store_true", default=None, help=text)


def settle_dataset(args: argparse.Namespace) -> None:
    """Name the data set, refuse flags that it does not use, and fill in defaults."""
    if args.dataset_name is None:
        args.dataset_name = "random" if args.dataset_path is None else "sharegpt"
    name = args.dataset_name
    for flag, names in _GOES_WITH.items():
        if getattr(args, flag) is not None and name not in names:
            why = ", which is fully fixed" if name in NAMED else f"; it goes with {', '.join(names)}"
            raise ConfigError(f"--{flag.replace('_', '-')} does not go with --dataset-name {name}{why}")
    if name in FILES and args.dataset_path is None:
        raise ConfigError(f"--dataset-name {name} needs --dataset-path FILE")
    check_counts(args, "num_prompts", "input_len", "output_len", "n")
    check_counts(args, "random_prefix_len", least=0)
    if name not in NAMED:
        defaults = {"num_prompts": DEFAULT_NUM_PROMPTS, "n": 1, "seed": 0}
        defaults |= {"input_len": DEFAULT_INPUT_LEN} if name == "random" else {}
        defaults |= {} if name in FILES else {"output_len": DEFAULT_OUTPUT_LEN}
        for flag, default in defaults.items():
            if getattr(args, flag) is None:
                setattr(args, flag, default)


def workload_of(args: argparse.Namespace) -> list[Work]:
    """The requests that settled flags ask for."""
    if args.dataset_name in NAMED:
        return NAMED[args.dataset_name]()
    if args.dataset_name in FILES:
        return _of_file(args)
    drawn = {"n": args.n, "vocab_size": vocab_size(args), "seed": args.seed}
    if args.dataset_name == "ragged16":
        return ragged16(args.num_prompts, args.output_len, **drawn)
    if args.random_range_ratio is None and not args.random_prefix_len:
        return random_workload(args.num_prompts, args.input_len, args.output_len, **drawn)
    requests = datasets.random_requests(
        *(args.num_prompts, args.input_len, args.output_len),
        range_ratio=args.random_range_ratio or 0.0,
        prefix_len=args.random_prefix_len or 0,
        vocab_size=drawn["vocab_size"],
        seed=args.seed,
    )
    return [Work(tuple(one.prompt), args.n, one.output_len) for one in requests if not isinstance(one.prompt, str)]


def _of_file(args: argparse.Namespace) -> list[Work]:
    """With prompts that the model's tokenizer has read."""
    from octavo.text.tokenizer import named_tokenizer

    encode = named_tokenizer(getattr(args, "tokenizer", None) or args.model).encode
    pick = datasets.Pick(args.num_prompts, args.seed, not args.disable_shuffle, not args.no_oversample)
    if args.dataset_name == "custom":
        requests = datasets.custom_requests(args.dataset_path, pick, args.output_len)
    else:
        requests = datasets.sharegpt_requests(args.dataset_path, pick, args.output_len, encode)
    prompts = [tuple(encode(one.prompt)) if isinstance(one.prompt, str) else one.prompt for one in requests]
    return [Work(prompt, args.n, one.output_len) for prompt, one in zip(prompts, requests, strict=True)]
