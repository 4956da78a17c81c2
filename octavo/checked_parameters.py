"""Sampling parameters of a request: declared once, with meaning and bounds, and checked when given or assigned.

    sharpness: float = parameter(1.0, "Above 1, likely tokens become likelier.", low=0.0, high=9.0, does="edits")

All lists of parameters come from these declarations: request bodies and their schema, command-line flags, a model's
recommended values, the sampler's columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, field, fields
from functools import wraps
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

from octavo.errors import InvalidRequestError
from octavo.shown import shown, suggestion
from octavo.vllm_options import NotHere, why_not

Made = TypeVar("Made")

MAX_WHOLE = 2**63 - 1  # messages between processes use 64 bits
MIN_MAGNITUDE = 1e-37
#: other systems that have a parameter under another name
Other = Literal["transformers", "gguf", "ollama", "anthropic"]


def parameter(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float = MAX_WHOLE,
    open_low: bool = False,
    does: Literal["filters", "edits"] | None = None,
    known_as: Mapping[Other, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    differs: str | None = None,
) -> Any:
    """A field of SamplingParams.

    meaning: a sentence for /docs and --help. low, high: bounds of a number; open_low: low itself is not allowed.
    does: removes tokens (filters) or changes their logits (edits); no effect at the default.
    known_as: names in other systems. defaults: other defaults than vLLM's. differs: the difference from vLLM's.
    """
    return field(
        default=default,
        metadata={
            "meaning": meaning, "low": low, "high": high, "open_low": open_low, "does": does,
            "known_as": known_as or {}, "defaults": defaults or {}, "differs": differs,
        },
    )  # fmt: skip


def bad_value(name: str, value: object, allowed: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} is {shown(value)}, allowed {allowed}")


def checked(declared: Field[Any], value: object) -> Any:
    """The value, checked: numbers against their bounds, and booleans. Raises InvalidRequestError."""
    kind, bounds = str(declared.type), declared.metadata
    if kind.startswith("bool"):
        if not isinstance(value, bool) and not (value is None and "None" in kind):
            allowed = "True, False and None" if "None" in kind else "True and False"
            raise bad_value(declared.name, value, f"are {allowed}")
    elif bounds["low"] is None or (value is None and "None" in kind):
        return value
    elif kind == "float":
        return checked_number(declared.name, value, bounds["low"], bounds["high"], bounds["open_low"])
    elif value is True and declared.name in ("logprobs", "prompt_logprobs"):  # as in vLLM
        return 1
    else:
        return checked_whole(declared.name, value, bounds["low"], bounds["high"])
    return value


def checked_whole(name: str, value: object, low: int, high: float = MAX_WHOLE) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise bad_value(name, value, "is a whole number")
    found = int(value)
    if found < low or found > high:
        bounds = f"{low} or more" if high == MAX_WHOLE and found < low else f"{low} to {high}"
        raise bad_value(name, found, f"is {bounds}")
    return found


def checked_number(name: str, value: object, low: float, high: float, open_low: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise bad_value(name, value, "is a number")
    try:
        number = float(value)
    except OverflowError:  # an integer too large for a float
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if math.isnan(number):
        raise bad_value(name, value, "is a number")
    if number < low or number > high or (open_low and number == low):
        left = "above" if open_low else "from"
        raise bad_value(name, value, f"is {left} {low:g} to {high:g}")
    if 0.0 < abs(number) < MIN_MAGNITUDE:
        raise InvalidRequestError(
            f"{name} is {value}, allowed are 0 and magnitudes from {MIN_MAGNITUDE:g}: sampling is in float32"
        )
    return number


def checked_strings(name: str, values: object) -> tuple[str, ...]:
    if values is None:
        return ()
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
        raise bad_value(name, values, "is a list of strings")
    strings = tuple(values)
    if any(not isinstance(value, str) or not value for value in strings):
        raise bad_value(name, list(strings), "are strings of at least one character")
    return strings


def checked_token_ids(name: str, values: object) -> tuple[int, ...]:
    if values is None:
        return ()
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
        raise bad_value(name, values, "is a list of token ids")
    return tuple(checked_whole(f"a token id of {name}", value, 0) for value in values)


def checked_some_ids(name: str, values: object, most: int, instead: str) -> tuple[int, ...]:
    """At least one token id, and at most `most`. instead: how to have them all."""
    ids = checked_token_ids(name, values)
    if not 1 <= len(ids) <= most:
        raise InvalidRequestError(f"{name} holds {len(ids)} ids, allowed are 1 to {most}; {instead}")
    return ids


def checked_bias(values: object) -> dict[int, float]:
    if not isinstance(values, Mapping):
        raise bad_value("logit_bias", values, "is a mapping of token id to number")
    bias: dict[int, float] = {}
    for key, value in values.items():
        is_number = isinstance(key, str) and key.isdecimal() and len(key) < 20  # JSON keys are strings
        token_id = checked_whole("a token id of logit_bias", int(key) if is_number else key, 0)
        bias[token_id] = checked_number(f"logit_bias[{token_id}]", value, -100.0, 100.0)
    return bias


def assignable(
    not_here: Mapping[str, NotHere], alone: Mapping[str, Any], needs: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[[type[Made]], type[Made]]:
    """Class decorator: make a frozen dataclass assignable, with checks, and let its errors name misspelt fields.

    vLLM's SamplingParams are mutable, and users change them. Assignment checks and normalises one field. Combinations
    are checked when the object is used, so that several fields may change in any order. Type checkers still see a
    frozen class; there `replace` is the way. not_here: vLLM's names that the class lacks. alone: values of other fields
    to check one field with, compatible with all of its values. needs: more such values, by the field that needs them.
    """

    def decorate(kind: type[Made]) -> type[Made]:
        whole: Any = kind
        names = {field.name for field in fields(whole)}
        make: Callable[..., None] = whole.__init__

        def refuse_unknown(given: Mapping[str, Any]) -> None:
            if (refusal := why_not(not_here, given)) is not None:
                raise InvalidRequestError(refusal)
            for name in given.keys() - names - not_here.keys():
                raise InvalidRequestError(f"{kind.__name__} has no field {name!r}; {suggestion(name, names)}")

        @wraps(make)
        def init(self: Made, *unnamed: Any, **given: Any) -> None:
            if unnamed:
                raise InvalidRequestError(f"{kind.__name__} takes fields by name, such as temperature=0.7")
            if not given.keys() <= names:
                refuse_unknown(given)
                given = {name: value for name, value in given.items() if name in names}
            make(self, **given)

        def assign(self: Made, name: str, value: Any) -> None:
            if name in names:
                others = {**alone, **(needs or {}).get(name, {})}
                object.__setattr__(self, name, getattr(kind(**{**others, name: value}), name))
            else:
                refuse_unknown({name: value})

        whole.__init__ = init
        whole.__setattr__ = assign
        return kind

    return decorate
