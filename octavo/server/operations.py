"""What is asked about the server itself: which model, how it is, how busy; and the page at /."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.processes.transport import pack_params
from octavo.server.api_errors import JSON, ApiError
from octavo.server.page import CONTENT_TYPE, content_security_policy, page
from octavo.server.responses import ModelCard, ModelList
from octavo.server.serving import Serving, installed_version, json_response
from octavo.shown import shown

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def list_models(request: Request, serving: Serving) -> Response:
    """The names that the model is served by."""
    return json_response(ModelList(data=[_card(name, serving) for name in serving.settings.served_model_name]))


async def get_model(request: Request, serving: Serving) -> Response:
    """One of them."""
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
    """200 while requests are served, 503 while they would be turned away; for load balancers, so without a body."""
    return Response(status_code=200 if serving.client.is_alive else 503)


async def version(request: Request, serving: Serving) -> Response:
    """The version of Octavo."""
    return Response(msgspec.json.encode({"version": installed_version()}), media_type=JSON)


async def load(request: Request, serving: Serving) -> Response:
    """server_load: requests in the engine, running or waiting, whichever front end they came by."""
    stats = await serving.client.stats()
    return Response(msgspec.json.encode({"server_load": stats.num_running + stats.num_waiting}), media_type=JSON)


async def metrics(request: Request, serving: Serving) -> Response:
    """The engine's metrics, for Prometheus."""
    return Response(await serving.client.metrics(), headers={"content-type": METRICS_TYPE})


async def home(request: Request, serving: Serving) -> Response:
    """A page to try the model and see what its engine does."""
    headers = {
        "content-type": CONTENT_TYPE,
        "content-security-policy": content_security_policy(),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return Response(page(serving.settings.root_path), headers=headers)
