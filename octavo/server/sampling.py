"""From a request's fields to SamplingParams: what is given, over what the model's makers recommend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.sampling_params import SamplingParams
from octavo.server.api_errors import ApiError, as_api_error
from octavo.server.protocol import SAME, GenerationRequest
from octavo.server.settings import ServerSettings
from octavo.shown import shown

_MAX_BIASES = 4096
_MAX_IDS = 4096  # in a list of them; each is checked by itself


def sampling_params(
    request: GenerationRequest, defaults: SamplingParams, settings: ServerSettings, **more: Any
) -> SamplingParams:
    """more: the fields that each route reads in its own way, None for the default."""
    given = {name: getattr(request, name) for name in SAME}
    given["logprob_token_ids"] = request.logprob_token_ids or None  # [] asks for nothing
    if request.logit_bias is not None:
        given["logit_bias"] = _logit_bias(request.logit_bias)
    return checked_params(defaults, settings, **given, **more)


def checked_params(defaults: SamplingParams, settings: ServerSettings, **fields: Any) -> SamplingParams:
    """The defaults with these fields, but for those that are None. Raises ApiError."""
    for name in ("stop", "bad_words"):
        _check_strings(name, fields.get(name), settings)
    for name in ("stop_token_ids", "allowed_token_ids"):
        if (num := len(fields.get(name) or ())) > _MAX_IDS:
            raise ApiError(400, f"{name} holds {num} token ids, allowed are {_MAX_IDS}", param=name)
    try:
        return defaults.replace(**{name: value for name, value in fields.items() if value is not None})
    except InvalidRequestError as error:
        raise as_api_error(error) from None


def _check_strings(name: str, value: str | list[str] | None, settings: ServerSettings) -> None:
    strings = [value] if isinstance(value, str) else value or []
    most = settings.max_stop_strings
    if len(strings) > most:
        raise ApiError(
            400, f"{name} holds {len(strings)} strings, allowed are {most}; --max-stop-strings raises it", param=name
        )
    longest = max(map(len, strings), default=0)
    if longest > settings.max_stop_string_len:
        raise ApiError(
            400,
            f"{name} holds a string of {longest} characters, allowed are {settings.max_stop_string_len}; "
            "--max-stop-string-len raises it",
            param=name,
        )


def _logit_bias(bias: Mapping[str, int | float]) -> dict[int, float]:
    if len(bias) > _MAX_BIASES:
        raise ApiError(400, f"logit_bias holds {len(bias)} tokens, allowed are {_MAX_BIASES}", param="logit_bias")
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise ApiError(400, f"logit_bias has the key {shown(key)}, allowed are token ids", param="logit_bias")
    return {int(key): value for key, value in bias.items()}
