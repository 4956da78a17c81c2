"""Adapters over HTTP: their names as models, and POST /v1/load_lora_adapter and /v1/unload_lora_adapter.

A client names an adapter as the model of any call. It may load one only where the server has a `lora_root`, and only
from a folder inside it: without links, and without a way out.
"""

from __future__ import annotations

import os
import stat
from hashlib import blake2b
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import InvalidRequestError
from octavo.lora.adapter_config import CONFIG_NAME
from octavo.lora.folder import WEIGHTS_NAME
from octavo.lora_request import LoRARequest
from octavo.server.api_errors import ApiError, bad_field
from octavo.server.protocol import LoadLoRARequest, UnloadLoRARequest
from octavo.server.serving import Serving
from octavo.shown import shown

_NUMBERS = 1 << 30


async def load_adapter(request: Request, serving: Serving) -> Response:
    """Load a LoRA adapter from a folder inside lora_root."""
    asked = await serving.read_body(request, LoadLoRARequest)
    root = _root(serving)
    names = serving.settings.served_model_name
    if asked.lora_name in names:
        raise bad_field("lora_name", f"is {shown(asked.lora_name)}, which names the model itself: take another")
    folder = await serving.lanes.run("answers", lambda: _folder_in(root, asked.lora_path))
    number = 1 + int.from_bytes(blake2b(asked.lora_name.encode(), digest_size=4).digest()) % _NUMBERS
    await serving.client.add_lora(LoRARequest(asked.lora_name, number, str(folder), load_inplace=asked.load_inplace))
    await serving.adapters.listed()
    return _success(f"LoRA adapter {asked.lora_name!r} is loaded")


async def unload_adapter(request: Request, serving: Serving) -> Response:
    """Unload a LoRA adapter. Calls that have begun with it get their answers."""
    asked = await serving.read_body(request, UnloadLoRARequest)
    _root(serving)
    found = next((one for one in await serving.adapters.listed() if one.lora_name == asked.lora_name), None)
    if found is None or asked.lora_int_id not in (None, found.lora_int_id):
        raise ApiError(404, f"there is no adapter {shown(asked.lora_name)}; see /v1/models", param="lora_name")
    await serving.client.remove_lora(found.lora_int_id)
    await serving.adapters.listed()
    return _success(f"LoRA adapter {asked.lora_name!r} is unloaded")


def _root(serving: Serving) -> str:
    root = serving.client.model_info.lora_root
    if root is None:
        raise ApiError(
            403,
            "adapters are not loaded at run time here: start the server with --enable-lora and --lora-root, the folder "
            "that they may be in",
        )
    return root


def _folder_in(root: str, path: str) -> Path:
    """The folder of an adapter that a client names, which must be inside the root, without links on the way. Raises
    InvalidRequestError, and looks at nothing outside."""
    inside = Path(root).resolve()
    named = inside / path
    if "\0" in path or ".." in named.parts or not named.is_relative_to(inside) or named == inside:
        raise InvalidRequestError(f"lora_path is {shown(path)}, allowed are folders inside lora_root, without '..'")
    below = named.relative_to(inside).parts
    steps = [inside.joinpath(*below[: count + 1]) for count in range(len(below))]
    for step in (*steps, named / CONFIG_NAME, named / WEIGHTS_NAME):
        try:
            mode = os.lstat(step).st_mode
        except OSError as error:
            raise InvalidRequestError(f"lora_path is {shown(path)}: {step.name}: {error.strerror}") from None
        if stat.S_ISLNK(mode):
            raise InvalidRequestError(f"lora_path is {shown(path)}, in which {step.name} is a link; allowed are none")
    return named


def _success(text: str) -> Response:
    return Response(f"Success: {text}.", media_type="text/plain; charset=utf-8")
