"""The schema at /openapi.json, made from the structs of requests and answers, and the page at /docs.

The page is plain HTML: it loads nothing and runs nothing.
"""

from __future__ import annotations

import html
import re
from functools import cache
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import Response

from octavo.observe.machine import installed_version
from octavo.server import (
    answer_bodies,
    anthropic_protocol,
    ollama_protocol,
    pooling_protocol,
    protocol,
    session_protocol,
)
from octavo.server.api_errors import JSON
from octavo.server.bodies import NEUTRAL, NO_EFFECT
from octavo.server.field_meanings import meaning
from octavo.server.responses import protocol as responses
from octavo.server.serving import Endpoint, Serving

_TEXT = {"type": "string"}
_DESCRIPTION = (
    "OpenAI's and Anthropic's APIs, with vLLM's further parameters. A field that is null is a field left out. "
    "Parameters that this engine does not support are accepted with the values that ask for nothing."
)

#: path, or method and path -> the request's struct, the answer's (None: see the docs), and whether it may stream
_BODIES: dict[str, tuple[type[msgspec.Struct] | None, type[msgspec.Struct] | None, bool]] = {
    "/v1/completions": (protocol.CompletionRequest, answer_bodies.CompletionResponse, True),
    "/v1/chat/completions": (protocol.ChatCompletionRequest, answer_bodies.ChatCompletionResponse, True),
    "/v1/chat/completions/batch": (protocol.BatchChatCompletionRequest, answer_bodies.ChatCompletionResponse, False),
    **pooling_protocol.BODIES,
    **anthropic_protocol.BODIES,
    "/api/chat": (ollama_protocol.OllamaChatRequest, None, True),
    "/api/generate": (ollama_protocol.OllamaGenerateRequest, None, True),
    "/api/embed": (ollama_protocol.OllamaEmbedRequest, None, False),
    "/api/embeddings": (ollama_protocol.OllamaEmbeddingsRequest, None, False),
    "/api/show": (ollama_protocol.OllamaShowRequest, None, False),
    "/v1/load_lora_adapter": (protocol.LoadLoRARequest, None, False),
    "/v1/unload_lora_adapter": (protocol.UnloadLoRARequest, None, False),
    "/v1/models": (None, answer_bodies.ModelList, False),
    "/v1/models/{model:path}": (None, answer_bodies.ModelCard, False),
    **responses.BODIES,
    **session_protocol.BODIES,
    "/tokenize": (protocol.TokenizeRequest, answer_bodies.TokenizeResponse, False),
    "/detokenize": (protocol.DetokenizeRequest, answer_bodies.DetokenizeResponse, False),
}

#: structs whose schema has the parameters of NO_EFFECT and NEUTRAL too
_WITH_PARAMETERS_OF_OTHERS = (
    protocol.CompletionRequest,
    protocol.ChatCompletionRequest,
    protocol.BatchChatCompletionRequest,
    anthropic_protocol.MessagesRequest,
    responses.ResponsesRequest,
    session_protocol.SessionGenerateRequest,
)


def describe(method: str, path: str, endpoint: Endpoint) -> dict[str, Any]:
    """FastAPI's arguments for a route."""
    extra: dict[str, Any] = {"responses": {"200": {"description": "OK"}}}
    bodies = _BODIES.get(f"{method} {path}", _BODIES.get(path))
    if bodies is not None:
        asked, answered, is_streamed = bodies
        content: dict[str, Any] = {JSON: {"schema": {"type": "object"} if answered is None else _reference(answered)}}
        if is_streamed:
            kind = "application/x-ndjson" if path.startswith("/api/") else "text/event-stream"
            content[kind] = {"schema": {"type": "string"}}
        extra["responses"] = {
            "200": {"description": "OK", "content": content},
            "default": {"description": "what was wrong, what is allowed, what to change"},
        }
        if asked is not None:
            extra["requestBody"] = {"required": True, "content": {JSON: {"schema": _reference(asked)}}}
        names = re.findall(r"{(\w+)", path)
        extra["parameters"] = [{"name": one, "in": "path", "required": True, "schema": _TEXT} for one in names]
    return {
        "name": endpoint.__name__,
        "operation_id": f"{method.lower()}_{path.strip('/') or 'home'}",
        "summary": (endpoint.__doc__ or path).strip().splitlines()[0],
        "response_model": None,
        "response_class": Response,
        "openapi_extra": extra,
        "include_in_schema": path not in ("/openapi.json", "/docs"),
    }


def documentation(app: FastAPI, root_path: str) -> tuple[tuple[str, str, Endpoint], ...]:
    """The routes that describe the others."""

    @cache
    def schema() -> dict[str, Any]:
        made = get_openapi(title="Octavo", version=installed_version(), description=_DESCRIPTION, routes=app.routes)
        if root_path:
            made["servers"] = [{"url": root_path}]
        made.setdefault("components", {}).setdefault("schemas", {}).update(_schemas())
        return made

    async def openapi(request: Request, serving: Serving) -> Response:
        return Response(msgspec.json.encode(schema()), media_type=JSON)

    async def docs(request: Request, serving: Serving) -> Response:
        headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(_page(schema()), media_type="text/html; charset=utf-8", headers=headers)

    return ("GET", "/openapi.json", openapi), ("GET", "/docs", docs)


def request_structs() -> list[type[msgspec.Struct]]:
    """The structs of bodies, and the structs inside them."""
    found = [asked for asked, _, _ in _BODIES.values() if asked is not None]
    inside = (protocol.StreamOptions, anthropic_protocol.AnthropicMessage, ollama_protocol.OllamaOptions)
    of_responses = (responses.ReasoningOptions, responses.TextOptions, responses.ResponseStreamOptions)
    return [*found, *inside, *of_responses]


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _schemas() -> dict[str, Any]:
    """The schemas of all bodies, with the parameters that are accepted in some values only."""
    kinds = {kind for asked, answered, _ in _BODIES.values() for kind in (asked, answered) if kind is not None}
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    for one in (protocol.ChatCompletionRequest, protocol.TokenizeRequest):
        schemas[one.__name__]["properties"]["messages"] = _messages()
    batch = schemas[protocol.BatchChatCompletionRequest.__name__]["properties"]
    batch["messages"] = {"type": "array", "minItems": 1, "items": _messages()}
    schemas["AnthropicMessage"]["properties"]["role"] = {"enum": ["user", "assistant"]}
    for asked in request_structs():
        for name, field in schemas[asked.__name__]["properties"].items():
            if (description := meaning(asked, name)) is not None:
                field["description"] = description
    for kind in _WITH_PARAMETERS_OF_OTHERS:
        fields = schemas[kind.__name__]["properties"]
        for name in sorted(NO_EFFECT):
            fields.setdefault(name, {"description": "Accepted; changes no answer."})
        for name, allowed in NEUTRAL.items():
            fields.setdefault(
                name, {"enum": [None, *allowed], "description": "Changes no answer; nothing else is supported."}
            )
    return schemas


def _messages() -> dict[str, Any]:
    """The checked part of messages; a chat template may read more."""
    part = {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": _TEXT}}
    content = {"anyOf": [_TEXT, {"type": "array", "items": part}]}
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"type": "string", "minLength": 1}, "content": content},
    }
    return {"type": "array", "minItems": 1, "items": message}


def _page(schema: dict[str, Any]) -> str:
    """Every route and its fields."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Octavo: the API</title>",
        "<style>body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}",
        "code{font-family:ui-monospace,monospace}dd{margin-bottom:.3rem}small{opacity:.7}",
        ":root{color-scheme:light dark}</style>",
        "<meta name=viewport content='width=device-width'>",
        f"<h1>Octavo {html.escape(installed_version())}</h1><p>{html.escape(_DESCRIPTION)} ",
        "The same for machines: <a href=openapi.json>openapi.json</a>.</p>",
    ]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation['summary'])}</p>")
            parts += _fields(operation, schema["components"]["schemas"])
    return "".join(parts)


def _fields(operation: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    body = operation.get("requestBody")
    if body is None:
        return []
    kind = schemas[body["content"][JSON]["schema"]["$ref"].rpartition("/")[2]]
    return ["<dl>", *(_row(name, field, kind, schemas) for name, field in kind["properties"].items()), "</dl>"]


def _row(name: str, field: dict[str, Any], kind: dict[str, Any], schemas: dict[str, Any]) -> str:
    """A field's name, kind and meaning, and the fields of a struct inside it."""
    inner = schemas.get(_struct_in(field))
    rows = [] if inner is None else [_row(one, its, inner, schemas) for one, its in inner["properties"].items()]
    is_required = " (required)" if name in kind.get("required", ()) else ""
    shape = "" if "enum" in field else html.escape(_kind_of(field))
    meaning = html.escape(field.get("description") or "")
    return (
        f"<dt><code>{html.escape(name)}</code>{is_required} <small>{shape}</small>"
        f"<dd>{meaning}{''.join(['<dl>', *rows, '</dl>']) if rows else ''}"
    )


def _kind_of(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return "object"
    if field.get("type") == "array":
        return f"list of {_kind_of(field.get('items', {}))}"
    kinds = [_kind_of(one) for one in field.get("anyOf", ()) if one.get("type") != "null"]
    return " or ".join(kinds) or str(field.get("type", "any"))


def _struct_in(field: dict[str, Any]) -> str:
    """The name of the struct in a field, or in its list; \"\" if there is none."""
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    inside = [field.get("items"), *field.get("anyOf", ())]
    return next((name for one in inside if isinstance(one, dict) and (name := _struct_in(one))), "")
