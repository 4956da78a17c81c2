"""Makes a frozen dataclass assignable, with checks, and lets its errors name misspelt fields.

vLLM's SamplingParams are mutable, and users change them. Assignment checks and normalises one field. Combinations are
checked when the object is used, so that several fields may change in any order. Type checkers still see a frozen class;
there `replace` is the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

from octavo.errors import InvalidRequestError
from octavo.shown import suggestion
from octavo.vllm_options import NotHere, why_not

Made = TypeVar("Made")


def assignable(not_here: Mapping[str, NotHere], alone: Mapping[str, Any]) -> Callable[[type[Made]], type[Made]]:
    """not_here: vLLM's names that the class lacks. alone: values of other fields to check one field with, compatible
    with all of its values."""

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
                object.__setattr__(self, name, getattr(kind(**{**alone, name: value}), name))
            else:
                refuse_unknown({name: value})

        whole.__init__ = init
        whole.__setattr__ = assign
        return kind

    return decorate
