"""Routes about the server itself (its models, health, load, metrics) and the page at `/`, from page.html.

The page is sent with a content security policy that allows only its own script and style, by hash: whatever a model
writes into it, the browser loads nothing and connects only to this server.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache
from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.observe import exposition
from octavo.processes.transport import pack_params
from octavo.server.api_errors import JSON, ApiError
from octavo.server.responses import ModelCard, ModelList
from octavo.server.serving import Serving, installed_version, json_response
from octavo.shown import shown

CONTENT_TYPE = "text/html; charset=utf-8"
_NO_ROOT = b'<meta name="root-path" content="">'


async def list_models(request: Request, serving: Serving) -> Response:
    """GET /v1/models: the served names of the model."""
    return json_response(ModelList(data=[_card(name, serving) for name in serving.settings.served_model_name]))


async def get_model(request: Request, serving: Serving) -> Response:
    """GET /v1/models/NAME."""
    name = request.path_params["model"]
    if name not in serving.settings.served_model_name:
        raise ApiError(
            404, f"the model {shown(name)} is not served here; see /v1/models", param="model", code="model_not_found"
        )
    return json_response(_card(name, serving))


def _card(name: str, serving: Serving) -> ModelCard:
    tokenizer = serving.client.get_tokenizer()
    return ModelCard(
        id=name,
        created=serving.created,
        root=serving.settings.served_model_name[0],
        max_model_len=serving.client.model_info.max_model_len,
        has_chat_template=tokenizer is not None and tokenizer.chat_template is not None,
        default_sampling_params=pack_params(serving.client.model_info.default_sampling_params),
    )


async def health(request: Request, serving: Serving) -> Response:
    """200 while requests are served, 503 while they are refused; without a body, for load balancers."""
    return Response(status_code=200 if serving.client.is_alive else 503)


async def version(request: Request, serving: Serving) -> Response:
    """The version of Octavo."""
    return Response(msgspec.json.encode({"version": installed_version()}), media_type=JSON)


async def load(request: Request, serving: Serving) -> Response:
    """server_load: running and waiting requests in the engine, of all front ends."""
    stats = await serving.client.stats()
    return Response(msgspec.json.encode({"server_load": stats.num_running + stats.num_waiting}), media_type=JSON)


async def metrics(request: Request, serving: Serving) -> Response:
    """The engine's metrics, for Prometheus."""
    return Response(await serving.client.metrics(), headers={"content-type": exposition.CONTENT_TYPE})


async def home(request: Request, serving: Serving) -> Response:
    """The page to try the model and watch its engine."""
    headers = {
        "content-type": CONTENT_TYPE,
        "content-security-policy": content_security_policy(),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return Response(page(serving.settings.root_path), headers=headers)


@cache
def page(root_path: str = "") -> bytes:
    """The page as sent. root_path: the prefix of the server's paths as browsers see them."""
    text = files("octavo.server").joinpath("page.html").read_bytes()
    assert text.count(_NO_ROOT) == 1, "page.html has one place for the root path"
    return text.replace(_NO_ROOT, f'<meta name="root-path" content="{html.escape(root_path)}">'.encode())


@cache
def content_security_policy() -> str:
    """The page's Content-Security-Policy header."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_of('script')}",
            f"style-src {_hash_of('style')}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash_of(tag: str) -> str:
    """The CSP hash of the page's only element with this tag."""
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page(), re.DOTALL)
    assert len(texts) == 1, f"page.html has {len(texts)} {tag} elements; the policy is made for one"
    return f"'sha256-{base64.b64encode(hashlib.sha256(texts[0]).digest()).decode()}'"
