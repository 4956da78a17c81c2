"""Routes about the server (models, health, load, metrics; Ollama's tags, ps, show), and the page at `/`, page.html.

The page's content security policy allows only its own script and style, by hash: whatever a model writes into the page,
the browser loads nothing and connects only to this server.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.lora_request import LoRARequest
from octavo.observe import exposition
from octavo.observe.machine import installed_version
from octavo.processes.transport import pack_params
from octavo.sampling_params import SamplingParams, known_to
from octavo.server.answer_bodies import ModelCard, ModelList
from octavo.server.api_errors import ApiError
from octavo.server.ollama import served_name
from octavo.server.ollama_lines import timestamp
from octavo.server.ollama_protocol import OllamaShowRequest
from octavo.server.serving import Serving, json_response
from octavo.shown import shown

CONTENT_TYPE = "text/html; charset=utf-8"
_NO_ROOT = b'<meta name="root-path" content="">'
#: a front end does not know the model's file or its type
_OLLAMA_DETAILS = {
    **dict.fromkeys(("parent_model", "format", "family"), ""),
    "families": [],
    **dict.fromkeys(("parameter_size", "quantization_level"), ""),
}


async def list_models(request: Request, serving: Serving) -> Response:
    """The names that the model is served by, and its adapters."""
    cards = [_card(name, serving) for name in serving.settings.served_model_name]
    adapters = [_adapter_card(one, serving) for one in await serving.adapters.listed()]
    return json_response(ModelList(data=[*cards, *adapters]))


async def get_model(request: Request, serving: Serving) -> Response:
    """One served name of the model, or one of its adapters."""
    name = request.path_params["model"]
    if name not in serving.settings.served_model_name:
        if (adapter := await serving.adapters.find(name)) is not None:
            return json_response(_adapter_card(adapter, serving))
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


def _adapter_card(adapter: LoRARequest, serving: Serving) -> ModelCard:
    """Its parent is the model, or what lora_modules names as that."""
    base = serving.settings.served_model_name[0]
    parent = adapter.base_model_name or base
    return msgspec.structs.replace(_card(base, serving), id=adapter.lora_name, root=adapter.lora_path, parent=parent)


async def health(request: Request, serving: Serving) -> Response:
    """200 while requests are served, 503 while they are refused; without a body, for load balancers."""
    return Response(status_code=200 if serving.client.is_alive else 503)


async def version(request: Request, serving: Serving) -> Response:
    """The version of Octavo."""
    return json_response({"version": installed_version()})


async def load(request: Request, serving: Serving) -> Response:
    """server_load: running and waiting requests of all front ends."""
    stats = await serving.client.stats()
    return json_response({"server_load": stats.num_running + stats.num_waiting})


async def metrics(request: Request, serving: Serving) -> Response:
    """The metrics of the engine and of the store of responses, for Prometheus."""
    text = await serving.client.metrics() + await serving.responses.metrics()
    return Response(text, headers={"content-type": exposition.CONTENT_TYPE})


async def events(request: Request, serving: Serving) -> Response:
    """The last events of the engine, or of that with the number `engine`, as a file for `octavo viz` and `explain`."""
    engine = _engine_of(request)
    headers = {"content-type": "application/gzip", "content-disposition": "attachment; filename=events.olog"}
    return Response(await serving.client.events(engine), headers=headers)


async def memory_map(request: Request, serving: Serving) -> Response:
    """What each block of KV memory holds now, in the engine or that with the number `engine`: the page draws it."""
    return Response(await serving.client.memory_map(_engine_of(request)), headers={"content-type": "application/json"})


def _engine_of(request: Request) -> int:
    asked = request.query_params.get("engine", "0")
    if not (asked.isascii() and asked.isdecimal() and len(asked) < 6):
        raise ApiError(400, f"engine is {shown(asked)}, allowed is an engine's number from 0 on", param="engine")
    return int(asked)


async def ollama_tags(request: Request, serving: Serving) -> Response:
    """The served models, for Ollama's clients."""
    return json_response({"models": [_ollama_model(name, serving) for name in serving.settings.served_model_name]})


async def ollama_running(request: Request, serving: Serving) -> Response:
    """The same models: they stay loaded while the server runs."""
    more = {"expires_at": "0001-01-01T00:00:00Z", "context_length": serving.client.model_info.max_model_len}
    names = serving.settings.served_model_name
    return json_response({"models": [_ollama_model(name, serving) | more for name in names]})


async def ollama_show(request: Request, serving: Serving) -> Response:
    """One model's chat template, context and abilities, for Ollama's clients."""
    asked = await serving.read_body(request, OllamaShowRequest)
    name = served_name(asked.model or asked.name, serving)
    info, tokenizer = serving.client.model_info, serving.client.get_tokenizer()
    neutral, defaults = SamplingParams(), info.default_sampling_params
    recommended = [
        f"{theirs} {getattr(defaults, ours)}"
        for theirs, ours in known_to("ollama").items()
        if getattr(defaults, ours) != getattr(neutral, ours)
    ]
    return json_response(
        {
            "modelfile": f"FROM {name}",
            "parameters": "\n".join(recommended),
            "template": "" if tokenizer is None else tokenizer.chat_templates.get("default", ""),
            "details": _OLLAMA_DETAILS,
            "model_info": {
                "general.architecture": "octavo",  # clients look for the keys below under this prefix
                "octavo.context_length": info.max_model_len,
                "octavo.vocab_size": info.vocab_size,
            },
            "capabilities": _abilities(serving),
            "modified_at": timestamp(serving.created),
        }
    )


def _abilities(serving: Serving) -> list[str]:
    """In Ollama's words."""
    if serving.client.model_info.pooled is not None:
        return ["embedding"]
    able = {"tools": serving.answers.can_call, "thinking": serving.answers.can_think}
    return ["completion", *(name for name, is_able in able.items() if is_able)]


def _ollama_model(name: str, serving: Serving) -> dict[str, Any]:
    tagged = name if ":" in name else f"{name}:latest"
    common = {"name": tagged, "model": tagged, "modified_at": timestamp(serving.created)}
    return {**common, "size": 0, "digest": "", "details": _OLLAMA_DETAILS}


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
    return (
        f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash_of(tag: str) -> str:
    """The CSP hash of the page's only element with this tag."""
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page(), re.DOTALL)
    assert len(texts) == 1, f"page.html has {len(texts)} {tag} elements; the policy needs one"
    return f"'sha256-{base64.b64encode(hashlib.sha256(texts[0]).digest()).decode()}'"
