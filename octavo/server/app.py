"""create_app: the HTTP server as an ASGI application around an engine client.

request ──▶ path ──▶ id ──▶ CORS ──▶ key ──▶ route ──▶ struct ──▶ token ids ──▶ EngineClient ──▶ events or one answer
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.llm_engine import EngineClient
from octavo.errors import ConfigError
from octavo.server import anthropic, chat, completions, ollama, operations, tokens
from octavo.server.api_errors import ApiError, error_response
from octavo.server.logprob_room import LogprobRoom
from octavo.server.middleware import CutRootPath, RequireKey, TellRequestId
from octavo.server.openapi import describe, documentation
from octavo.server.serving import Endpoint, Serving, route
from octavo.server.settings import ServerSettings
from octavo.shown import shown

ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/v1/completions", completions.create_completion),
    ("POST", "/v1/chat/completions", chat.create_chat_completion),
    ("POST", "/v1/chat/completions/batch", chat.create_chat_batch),
    ("POST", "/v1/messages", anthropic.create_message),
    ("POST", "/v1/messages/count_tokens", anthropic.count_tokens),
    ("POST", "/api/chat", ollama.chat),
    ("POST", "/api/generate", ollama.generate),
    ("GET", "/api/tags", operations.ollama_tags),
    ("POST", "/api/show", operations.ollama_show),
    ("GET", "/api/ps", operations.ollama_running),
    ("GET", "/api/version", operations.version),
    ("GET", "/v1/models", operations.list_models),
    ("GET", "/v1/models/{model:path}", operations.get_model),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("GET", "/health", operations.health),
    ("GET", "/ping", operations.health),
    ("POST", "/ping", operations.health),
    ("GET", "/version", operations.version),
    ("GET", "/load", operations.load),
    ("GET", "/metrics", operations.metrics),
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
    app = FastAPI(
        title="Octavo", redirect_slashes=not settings.root_path, **options
    )  # redirects would lose the root path
    room = LogprobRoom(2 * settings.max_logprobs_per_request)
    serving = Serving(client=client, settings=settings, created=int(time.time()), logprob_room=room)
    routes = [*ROUTES, *OPTIONAL_ROUTES] if settings.enable_tokenizer_info_endpoint else [*ROUTES]
    if not settings.disable_fastapi_docs:
        routes += documentation(app, settings.root_path)
    for method, path, endpoint in routes:
        app.add_api_route(path, route(endpoint, serving), methods=[method], **describe(method, path, endpoint))
    app.add_exception_handler(HTTPException, _no_such_route)
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


async def _no_such_route(request: Request, error: Exception) -> Response:
    """The router's own errors, in the shape of all others."""
    assert isinstance(error, HTTPException), "this handler is for the router's errors"
    path = request.scope["path"]
    messages = {
        404: f"there is no {shown(path)} here; see /openapi.json",
        405: f"{shown(path)} is not for {request.method}",
    }
    message = messages.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, message, headers=error.headers), path)
