"""StructuredOutputsParams: the form that an answer must have. vLLM's names and defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from octavo.checked_parameters import bad_value
from octavo.errors import InvalidRequestError
from octavo.shown import shown, suggestion

#: exactly one of them says what the answer is
FORMS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
#: characters of a schema, a regex, a grammar, or of all choices together
MAX_SIZE = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Thoughts:
    """The thoughts before a request's answer, as tokens: of the marks that begin and end them. is_begun: the prompt
    ends inside them. budget: most tokens, behind which `closing` is forced."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    closing: tuple[int, ...]
    is_begun: bool
    budget: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """What an answer must be; exactly one of the first six.

    json: a JSON schema, as a dict, as text, or a pydantic model. regex: matches the whole answer. choice: one of these
    texts. grammar: a context-free grammar, in Lark's or in GBNF's notation. json_object: any JSON object.
    structural_tag: free text in which what follows a trigger has a form. The switches are about JSON.
    disable_additional_properties: objects of the schema have the properties that it names, unless it says otherwise.
    whitespace_pattern: a regex of what may stand between JSON's tokens. after_thoughts: whether the model may write its
    thoughts first, as its reasoning_parser finds them; None: if the prompt has begun them.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Iterable[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | Mapping[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    after_thoughts: bool | None = None

    def __post_init__(self) -> None:
        if callable(schema := getattr(self.json, "model_json_schema", None)):
            object.__setattr__(self, "json", schema())
        given = [name for name in FORMS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            raise InvalidRequestError(f"structured_outputs holds {found}, allowed is exactly one of {', '.join(FORMS)}")
        for name, kinds, allowed in _TYPES:
            if (value := getattr(self, name)) is not None and not isinstance(value, kinds):
                raise bad_value(f"structured_outputs.{name}", value, allowed)
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        self._check_size()
        if self.whitespace_pattern is not None and self.disable_any_whitespace:
            raise InvalidRequestError(
                f"structured_outputs.whitespace_pattern is {shown(self.whitespace_pattern)} and disable_any_whitespace "
                "is True, allowed is one of the two"
            )

    @classmethod
    def of(cls, given: object) -> StructuredOutputsParams:
        """From a mapping of the fields, as requests have it."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise bad_value("structured_outputs", given, "are a StructuredOutputsParams and a dict of its fields")
        names = [one.name for one in fields(cls)]
        for name in given:
            if name not in names:
                raise InvalidRequestError(
                    f"structured_outputs has no field {shown(name)}; {suggestion(str(name), names)}"
                )
        return cls(**{name: value for name, value in given.items() if value is not None})

    def _check_size(self) -> None:
        for name in (*FORMS, "whitespace_pattern"):
            value = getattr(self, name)
            size = sum(map(len, value)) if isinstance(value, tuple) else len(value) if isinstance(value, str) else 0
            if size > MAX_SIZE:
                raise too_large(name, size)


def too_large(name: str, size: int) -> InvalidRequestError:
    return InvalidRequestError(f"structured_outputs.{name} has {size} characters, allowed are {MAX_SIZE}")


_SCHEMA = "are a dict, its JSON text and a pydantic model"
_TYPES: tuple[tuple[str, Any, str], ...] = (
    ("json", (str, Mapping), _SCHEMA),
    ("regex", str, "is text"),
    ("grammar", str, "is text"),
    ("json_object", bool, "are True, False and None"),
    ("structural_tag", (str, Mapping), "are a dict and its JSON text"),
    ("disable_any_whitespace", bool, "are True and False"),
    ("disable_additional_properties", bool, "are True and False"),
    ("whitespace_pattern", str, "is text"),
    ("after_thoughts", bool, "are True, False and None"),
)


def _choices(values: object) -> tuple[str, ...]:
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
        raise bad_value("structured_outputs.choice", values, "is a list of texts")
    found = tuple(values)
    if not found or any(not isinstance(one, str) or not one for one in found):
        raise bad_value("structured_outputs.choice", list(found), "are one or more texts of at least one character")
    return found
