"""Sampling flags: SamplingParams on the command line and in JSONL lines, under its own names."""

from __future__ import annotations

import argparse
import secrets
from dataclasses import fields
from typing import Any

from octavo.cli.flags import json_value, number, whole_number
from octavo.errors import InvalidRequestError
from octavo.sampling_params import SamplingParams, defaults_for, parameters_that


def _yes_no_or_text(text: str) -> bool | str:
    """true and false as values; SamplingParams check the rest."""
    return {"true": True, "false": False}.get(text, text)


#: parameter type -> argparse options
_KINDS: dict[str, dict[str, Any]] = {
    "float": {"type": number, "metavar": "X"},
    "int": {"type": whole_number, "metavar": "N"},
    "int | None": {"type": whole_number, "metavar": "N"},
    "bool": {"action": argparse.BooleanOptionalAction},
    "EarlyStopping": {"type": _yes_no_or_text, "metavar": "true|false|never"},
    "bool | None": {"action": argparse.BooleanOptionalAction},
    "str | Iterable[str] | None": {"type": str, "metavar": "TEXT", "action": "append"},
    "Iterable[str] | None": {"type": str, "metavar": "TEXT", "action": "append"},
    "Iterable[int] | None": {"type": whole_number, "metavar": "ID", "action": "append"},
    "Mapping[int, float] | None": {"type": json_value, "metavar": "JSON"},
    "StructuredOutputsParams | None": {"type": json_value, "metavar": "JSON"},
    "RepetitionDetectionParams | None": {"type": json_value, "metavar": "JSON"},
}

#: parameters that `run` sets itself or cannot show
NOT_FLAGS = frozenset(
    {
        "output_kind",
        "stream_interval",
        "detokenize",
        "logprobs",
        "prompt_logprobs",
        "logprob_token_ids",
        "flat_logprobs",
        "logits_processors",
    }
)

_DECLARED = {one.name: one for one in fields(SamplingParams)}
FLAGS = tuple(name for name in _DECLARED if name not in NOT_FLAGS)


#: what is said of an answer that ended so
REPEATED = "ended where it repeated itself, as --repetition-detection asks"

#: defaults for answers that people read, if the model's makers recommend none: likely words, with some variety
FOR_PEOPLE = defaults_for("people")
RECOMMENDED = ("temperature", *parameters_that("filters"))


def for_people(params: SamplingParams) -> SamplingParams:
    """A model's defaults for `run` and `chat`. Sampling values that its makers recommend are kept."""
    neutral = SamplingParams()
    if any(getattr(params, name) != getattr(neutral, name) for name in RECOMMENDED):
        return params
    return params.replace(**FOR_PEOPLE)


def fresh_seed() -> int:
    """A random seed, short enough to type."""
    return secrets.randbits(31)


def seed_of(first: int, index: int) -> int:
    """The seed of the index-th answer: equal prompts get different answers, reproducibly."""
    return first if index == 0 else (first + index) % 2**63


def add_sampling_flags(
    parser: argparse.ArgumentParser, exclude: frozenset[str] = frozenset(), *, max_tokens: str
) -> None:
    """A flag for every parameter not excluded. max_tokens: its default, in words."""
    chosen = ", ".join(f"{name} {value:g}" for name, value in FOR_PEOPLE.items())
    group = parser.add_argument_group(
        "sampling", f"default: what the model's generation_config.json says, else {chosen} and a fresh seed"
    )
    for name in FLAGS:
        if name not in exclude:
            add_sampling_flag(group, name, f" (default: {max_tokens})" if name == "max_tokens" else "")


def add_sampling_flag(group: argparse._ArgumentGroup, name: str, more: str = "") -> None:
    """The flag of one parameter; absent from the arguments unless given. more: the end of its help."""
    declared = _DECLARED[name]
    kind, meaning = _KINDS[str(declared.type)], declared.metadata["meaning"].removesuffix(".")
    several = "; may be given several times" if kind.get("action") == "append" else ""
    text = f"{meaning[0].lower()}{meaning[1:]}{several}{more}"
    group.add_argument("--" + name.replace("_", "-"), **kind, default=argparse.SUPPRESS, help=text)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling flags that were given, as fields of SamplingParams."""
    given = vars(args)
    return {name: given[name] for name in FLAGS if name in given}


def overlay(params: SamplingParams, options: dict[str, Any], where: str = "") -> SamplingParams:
    """`params` with some fields changed. Errors begin with `where`."""
    unknown = sorted(set(options) - set(FLAGS))
    if unknown:
        raise InvalidRequestError(f"{where}unknown field {unknown[0]!r}, allowed are {', '.join(sorted(FLAGS))}")
    try:
        return params.replace(**options)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{where}{error}") from None
