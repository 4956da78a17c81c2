"""OpenAI's and Anthropic's ways to ask for the form of an answer, as structured_outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.server.api_errors import ApiError, bad_field
from octavo.shown import shown
from octavo.structured_outputs import FORMS

_SCHEMA_KEYS = ("name", "description", "schema", "strict")


def asked_form(
    response_format: Mapping[str, Any] | None, structured: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The structured_outputs that a request asks for, in either way. Raises ApiError."""
    form = None if response_format is None else _form(response_format)
    given = {name: value for name, value in (structured or {}).items() if value is not None}
    if form is None:
        return given or None
    if asks := [name for name in FORMS if given.get(name)]:
        problem = f"is set and structured_outputs has {asks[0]}, allowed is one of the two"
        raise bad_field("response_format", problem)
    return {**given, **form}  # switches go with a schema of either


def asked_of_anthropic(output_config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The structured_outputs that `output_config.format` asks for. Raises ApiError."""
    _check_keys("output_config", output_config or {}, ("format",))
    if (asked := (output_config or {}).get("format")) is None:
        return None
    where = "output_config.format"
    if not isinstance(asked, dict) or asked.get("type") != "json_schema":
        raise bad_field(where, f"is {shown(asked)}, allowed is an object with type json_schema and a schema")
    _check_keys(where, asked, ("type", "schema"))
    if not isinstance(schema := asked.get("schema"), dict):
        raise bad_field(f"{where}.schema", f"is {shown(schema)}, allowed is a JSON schema, which is an object")
    return {"json": schema}


def _form(asked: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = asked.get("type")
    if kind == "text":
        _check_keys("response_format", asked, ("type",))
        return None
    if kind == "json_object":
        _check_keys("response_format", asked, ("type",))
        return {"json_object": True}
    if kind == "json_schema":
        _check_keys("response_format", asked, ("type", "json_schema"))
        return {"json": _schema(asked.get("json_schema"))}
    if kind == "structural_tag":
        return {"structural_tag": dict(asked)}
    raise bad_field(
        "response_format.type", f"is {shown(kind)}, allowed are text, json_object, json_schema and structural_tag"
    )


def _schema(asked: Any) -> dict[str, Any]:
    """strict: the answer matches the schema with and without it."""
    where = "response_format.json_schema"
    if not isinstance(asked, dict):
        raise bad_field(where, f"is {shown(asked)}, allowed is an object with a schema")
    _check_keys(where, asked, _SCHEMA_KEYS)
    for name, kinds, allowed in (
        ("name", str, "text"),
        ("description", str, "text"),
        ("strict", bool, "true or false"),
    ):
        if (value := asked.get(name)) is not None and not isinstance(value, kinds):
            raise bad_field(f"{where}.{name}", f"is {shown(value)}, allowed is {allowed}")
    if not isinstance(schema := asked.get("schema"), dict):
        raise bad_field(f"{where}.schema", f"is {shown(schema)}, allowed is a JSON schema, which is an object")
    return schema


def _check_keys(where: str, asked: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for name in asked:
        if name not in allowed:
            raise ApiError(
                400,
                f"{where} has no field {shown(name)}; allowed are {', '.join(allowed)}",
                param=where.partition(".")[0],
                code="unknown_parameter",
            )
