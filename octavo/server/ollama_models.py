"""GET /api/tags, /api/ps and /api/version, POST /api/show: what Ollama's clients ask of the models that are there."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.sampling_params import SamplingParams, known_to
from octavo.server.api_errors import JSON
from octavo.server.ollama import served_name
from octavo.server.ollama_protocol import OllamaShowRequest
from octavo.server.serving import Serving, installed_version


async def tags(request: Request, serving: Serving) -> Response:
    """The models that are served."""
    return _json({"models": [_model(name, serving) for name in serving.settings.served_model_name]})


async def running(request: Request, serving: Serving) -> Response:
    """The same models: they are loaded as long as the server runs."""
    forever = {"expires_at": "0001-01-01T00:00:00Z", "context_length": serving.client.model_info.max_model_len}
    return _json({"models": [{**_model(name, serving), **forever} for name in serving.settings.served_model_name]})


async def version(request: Request, serving: Serving) -> Response:
    """Octavo's version: clients look whether there is one."""
    return _json({"version": installed_version()})


async def show(request: Request, serving: Serving) -> Response:
    """One model: its chat template, its context, what it can do."""
    asked = await serving.read_body(request, OllamaShowRequest)
    name = served_name(asked.model or asked.name, serving)
    info, tokenizer = serving.client.model_info, serving.client.get_tokenizer()
    return _json(
        {
            "modelfile": f"FROM {name}",
            "parameters": _parameters(info.default_sampling_params),
            "template": "" if tokenizer is None else tokenizer.chat_templates.get("default", ""),
            "details": _DETAILS,
            "model_info": {
                "general.architecture": "octavo",  # the name before the keys that follow, which clients look for
                "octavo.context_length": info.max_model_len,
                "octavo.vocab_size": info.vocab_size,
            },
            "capabilities": ["completion"],
            "modified_at": _since(serving),
        }
    )


#: which file a model came from, and in which type, is not a front end's to know
_DETAILS = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}


def _model(name: str, serving: Serving) -> dict[str, Any]:
    tagged = name if ":" in name else f"{name}:latest"
    common = {"name": tagged, "model": tagged, "modified_at": _since(serving)}
    return {**common, "size": 0, "digest": "", "details": _DETAILS}


def _parameters(defaults: SamplingParams) -> str:
    """What the model's makers recommend, a line each."""
    neutral = SamplingParams()
    lines = [
        f"{theirs} {getattr(defaults, ours)}"
        for theirs, ours in known_to("ollama").items()
        if getattr(defaults, ours) != getattr(neutral, ours)
    ]
    return "\n".join(lines)


def _since(serving: Serving) -> str:
    return datetime.datetime.fromtimestamp(serving.created, datetime.UTC).isoformat().replace("+00:00", "Z")


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type=JSON)
