"""Sampling flags: SamplingParams on the command line and in JSONL lines, under its own names."""

from __future__ import annotations

import argparse
import secrets
from typing import Any, TypeVar

from octavo.cli.flags import json_value, number, whole_number
from octavo.errors import InvalidRequestError
from octavo.sampling_params import SamplingParams

Flag = TypeVar("Flag")

_NUMBERS: dict[str, tuple[Any, str]] = {
    "n": (whole_number, "answers to sample for each prompt; they share the prompt's KV blocks"),
    "temperature": (number, "0 takes the best token, higher is more daring"),
    "top_p": (number, "keep the smallest set of tokens with this probability mass"),
    "top_k": (whole_number, "keep this many best tokens; 0 keeps all"),
    "min_p": (number, "keep tokens at least this share as likely as the best"),
    "max_tokens": (whole_number, "most tokens to generate"),
    "min_tokens": (whole_number, "generate at least this many tokens before an end token may come"),
    "seed": (whole_number, "draw the same tokens again, whatever else is in the batch"),
    "presence_penalty": (number, "subtracted once from the logit of every token generated before, -2 to 2"),
    "frequency_penalty": (number, "subtracted as often as the token was generated before, -2 to 2"),
    "repetition_penalty": (number, "makes tokens of prompt and answer less likely if above 1"),
    "truncate_prompt_tokens": (whole_number, "keep only the last so many prompt tokens; -1: what the model can take"),
}
_LISTS: dict[str, tuple[Any, str]] = {
    "stop": (str, "a string that ends an answer; may be given several times"),
    "stop_token_ids": (whole_number, "a token id that ends an answer; may be given several times"),
    "bad_words": (str, "a string that may not be generated; may be given several times"),
    "allowed_token_ids": (whole_number, "the only token ids that may be drawn; given several times"),
}
_SWITCHES = {
    "ignore_eos": "go on past the model's end token",
    "skip_special_tokens": "leave special tokens out of the text",
    "include_stop_str_in_output": "keep the stop string in the text",
    "skip_reading_prefix_cache": "compute the whole prompt, even if its blocks are cached",
}
_JSON = {"logit_bias": 'what to add to tokens\' logits: {"token id": number}'}

#: what `run` decides itself or has nowhere to show
NOT_FLAGS = frozenset(
    {"output_kind", "detokenize", "logprobs", "prompt_logprobs", "logprob_token_ids", "flat_logprobs"}
)

FLAGS = (*_NUMBERS, *_LISTS, *_SWITCHES, *_JSON)


#: for who reads answers, where a model's makers recommend nothing: likely words, and not always the same
FOR_PEOPLE = {"temperature": 0.7, "top_p": 0.95, "min_p": 0.05}
RECOMMENDED = ("temperature", "top_p", "top_k", "min_p")


def for_people(params: SamplingParams) -> SamplingParams:
    """A model's defaults as `run` and `chat` take them. What its makers recommend of randomness is left as it is."""
    neutral = SamplingParams()
    if any(getattr(params, name) != getattr(neutral, name) for name in RECOMMENDED):
        return params
    return params.replace(**FOR_PEOPLE)


def fresh_seed() -> int:
    """Another one each time, short enough to be typed."""
    return secrets.randbits(31)


def seed_of(first: int, index: int) -> int:
    """Of the answer so many after the first: equal prompts get different answers, and the same ones again."""
    return first if index == 0 else (first + index) % 2**63


def add_sampling_flags(
    parser: argparse.ArgumentParser, exclude: frozenset[str] = frozenset(), *, max_tokens: str
) -> None:
    """A flag for every field, but for those that this command has no use for. max_tokens: its default, in words."""
    chosen = ", ".join(f"{name} {value:g}" for name, value in FOR_PEOPLE.items())
    group = parser.add_argument_group(
        "sampling", f"default: what the model's generation_config.json says, else {chosen} and a fresh seed"
    )
    unset = argparse.SUPPRESS
    for name, (convert, text) in _without(_NUMBERS, exclude).items():
        text = f"{text} (default: {max_tokens})" if name == "max_tokens" else text
        metavar = "X" if convert is number else "N"
        group.add_argument(_flag(name), type=convert, metavar=metavar, default=unset, help=text)
    for name, (convert, text) in _without(_LISTS, exclude).items():
        metavar = "TEXT" if convert is str else "ID"
        group.add_argument(_flag(name), type=convert, metavar=metavar, action="append", default=unset, help=text)
    for name, text in _without(_SWITCHES, exclude).items():
        group.add_argument(_flag(name), action=argparse.BooleanOptionalAction, default=unset, help=text)
    for name, text in _without(_JSON, exclude).items():
        group.add_argument(_flag(name), type=json_value, metavar="JSON", default=unset, help=text)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was given on the command line, as fields of SamplingParams."""
    given = vars(args)
    return {name: given[name] for name in FLAGS if name in given}


def overlay(params: SamplingParams, options: dict[str, Any], where: str = "") -> SamplingParams:
    """`params` with some fields changed; an unknown field or a bad value names its place."""
    unknown = sorted(set(options) - set(FLAGS))
    if unknown:
        raise InvalidRequestError(f"{where}unknown field {unknown[0]!r}, allowed are {', '.join(sorted(FLAGS))}")
    try:
        return params.replace(**options)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{where}{error}") from None


def _without(flags: dict[str, Flag], exclude: frozenset[str]) -> dict[str, Flag]:
    return {name: flag for name, flag in flags.items() if name not in exclude}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
