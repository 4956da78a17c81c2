"""create_app: the HTTP server as an ASGI application around an engine client: its routes and its middleware.

request ──▶ path ──▶ id ──▶ CORS ──▶ key ──▶ route ──▶ struct ──▶ token ids ──▶ EngineClient ──▶ events or one answer

A proxy may show the server under a path of its own, and cut that path or leave it:

    https://example.org/llm/v1/models ──▶ proxy ──▶ /llm/v1/models or /v1/models ──▶ /v1/models
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.engine.llm_engine import EngineClient
from octavo.errors import ConfigError
from octavo.server import (
    adapters,
    anthropic,
    chat,
    chat_batch,
    completions,
    embeddings,
    ollama,
    ollama_embeddings,
    operations,
    scores,
    sessions,
    tokens,
)
from octavo.server.access import RequireKey
from octavo.server.adapter_names import AdapterNames
from octavo.server.answers import AnswerReader
from octavo.server.logprob_room import LogprobRoom
from octavo.server.openapi import describe, documentation
from octavo.server.responses import kept_routes as responses
from octavo.server.responses.store import ResponseStore
from octavo.server.serving import REQUEST_ID_HEADER, Endpoint, Serving, is_request_id, route
from octavo.server.session_store import SessionStore
from octavo.server.settings import ServerSettings
from octavo.server.streaming import Lanes
from octavo.server.unknown_routes import no_such_route

ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/v1/completions", completions.create_completion),
    ("POST", "/v1/chat/completions", chat.create_chat_completion),
    ("POST", "/v1/chat/completions/batch", chat_batch.create_chat_batch),
    ("POST", "/v1/embeddings", embeddings.create_embedding),
    ("POST", "/pooling", embeddings.pool),
    ("POST", "/classify", embeddings.classify),
    *(("POST", path, scores.create_score) for path in ("/v1/score", "/score")),
    *(("POST", path, scores.rerank) for path in ("/v1/rerank", "/v2/rerank", "/rerank")),
    ("POST", "/v1/messages", anthropic.create_message),
    ("POST", "/v1/messages/count_tokens", anthropic.count_tokens),
    ("POST", "/api/chat", ollama.chat),
    ("POST", "/api/generate", ollama.generate),
    ("POST", "/api/embed", ollama_embeddings.embed),
    ("POST", "/api/embeddings", ollama_embeddings.embed_one),
    ("GET", "/api/tags", operations.ollama_tags),
    ("POST", "/api/show", operations.ollama_show),
    ("GET", "/api/ps", operations.ollama_running),
    ("GET", "/api/version", operations.version),
    ("GET", "/v1/models", operations.list_models),
    ("GET", "/v1/models/{model:path}", operations.get_model),
    *responses.ROUTES,
    ("POST", "/v1/load_lora_adapter", adapters.load_adapter),
    ("POST", "/v1/unload_lora_adapter", adapters.unload_adapter),
    *sessions.ROUTES,
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("GET", "/health", operations.health),
    ("GET", "/ping", operations.health),
    ("POST", "/ping", operations.health),
    ("GET", "/version", operations.version),
    ("GET", "/load", operations.load),
    ("GET", "/metrics", operations.metrics),
    ("GET", "/memory_map", operations.memory_map),
    ("GET", "/events", operations.events),
    ("GET", "/", operations.home),
    ("HEAD", "/", operations.home),  # Ollama's clients look for a server this way
)

#: routes that a flag of the server adds
OPTIONAL_ROUTES: tuple[tuple[str, str, Endpoint], ...] = (("GET", "/tokenizer_info", tokens.tokenizer_info),)


def create_app(client: EngineClient, settings: ServerSettings) -> FastAPI:
    """settings.served_model_name must name the model: an engine client does not know its name."""
    if not settings.served_model_name:
        raise ConfigError("served_model_name is empty, allowed is one name or more: pass the model's")
    settings = settings.with_keys()
    options: dict[str, Any] = dict.fromkeys(("docs_url", "redoc_url", "openapi_url"))
    options["redirect_slashes"] = not settings.root_path  # redirects would lose it
    app = FastAPI(title="Octavo", **options)
    room = LogprobRoom(2 * settings.max_logprobs_per_request)
    created, sessions, lanes = int(time.time()), SessionStore(settings), Lanes()
    serving = Serving(
        client=client,
        settings=settings,
        created=created,
        logprob_room=room,
        sessions=sessions,
        responses=ResponseStore(settings, lanes),
        lanes=lanes,
        answers=AnswerReader(client.get_tokenizer(), settings),
        adapters=AdapterNames(client),
    )
    routes = [*ROUTES, *OPTIONAL_ROUTES] if settings.enable_tokenizer_info_endpoint else [*ROUTES]
    if not settings.disable_fastapi_docs:
        routes += documentation(app, settings.root_path)
    for method, path, endpoint in routes:
        app.add_api_route(path, route(endpoint, serving), methods=[method], **describe(method, path, endpoint))
    app.add_exception_handler(HTTPException, no_such_route)
    if settings.api_key:
        app.add_middleware(RequireKey, keys=settings.api_key)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=settings.allowed_methods,
            allow_headers=settings.allowed_headers,
            allow_credentials=settings.allow_credentials,
        )
    if settings.enable_request_id_headers:
        app.add_middleware(TellRequestId)
    if settings.root_path:
        app.add_middleware(CutRootPath, root_path=settings.root_path)  # added last, so it is the outermost
    return app


class TellRequestId:
    """Middleware that sends the request's id, or a new one, with every response, refusals too. A route that has named
    the call in another way has already set the header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER)
        sent_id = given if given is not None and is_request_id(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(REQUEST_ID_HEADER, sent_id)
            await send(message)

        if given is None:  # so that the call gets the same id
            scope = {**scope, "headers": [*scope["headers"], (REQUEST_ID_HEADER.encode(), sent_id.encode())]}
        await self._app(scope, receive, send_with_id)


class CutRootPath:
    """Middleware that removes the proxy's path, if the proxy left it."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if path == self._root_path or path.startswith(f"{self._root_path}/"):
            scope = {**scope, "path": path[len(self._root_path) :] or "/"}
        await self._app(scope, receive, send)
