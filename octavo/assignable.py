"""A frozen dataclass that names what is misspelt, and whose fields may be assigned as if it were made anew.

vLLM's SamplingParams can be changed after they are made, and people do. Assignment checks and normalises the one field;
what fields say together is checked when the object is used, so that several may be changed in any order. To type
checkers the class stays frozen: `replace` is the other way.
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
    """not_here: names of vLLM's that the class lacks. alone: fields to check another one with, such that no value of
    that one disagrees with them."""

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
