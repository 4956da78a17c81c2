"""Bodies that msgspec refuses: read after all, or an error that names the field, its value and what is allowed.

refused body ──▶ dict ──▶ without null and neutral fields ──▶ struct, or the error

Fields that other servers have and this engine lacks are listed here: each is accepted or refused by name, never
ignored.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from octavo.server.api_errors import ApiError, bad_field
from octavo.shown import shown, suggestion
from octavo.vllm_options import SAMPLING_FIELDS

T = TypeVar("T", bound=msgspec.Struct)

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_EXPECTED = re.compile(r"Expected (?P<allowed>.+), got .+")
_MISSING = re.compile(r"Object missing required field `(\w+)`")

#: accepted with any value: they identify the caller or hint at caching, and change no answer
NO_EFFECT = frozenset(
    (
        *("user", "metadata", "safety_identifier", "session_id", "parallel_tool_calls", "cache_control"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    )
)

#: how vLLM once spelled structured_outputs
FORMER_STRUCTURED_OUTPUTS = (
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
    *("guided_whitespace_pattern", "structural_tag"),
)

#: how vLLM once spelled use_activation
FORMER_USE_ACTIVATION = ("normalize", "activation", "softmax")

#: field that this engine lacks -> values that ask for nothing, which are accepted
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto", {"type": "none"}, {"type": "auto"}),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "suffix": ("",),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default", "standard_only"),
    "speed": ("standard",),
    "verbosity": ("medium",),
    "reasoning_effort": ("none",),
    "include_reasoning": (True,),
    "thinking": ({"type": "disabled"},),
    "mcp_servers": ([],),
    # No decoder that can be streamed puts a space between special tokens, so there is none to leave out either.
    "spaces_between_special_tokens": (True, False),
    **dict.fromkeys(("media_io_kwargs", "mm_processor_kwargs", "vllm_xargs"), ({},)),
    **dict.fromkeys(("return_weight_versions", "return_token_offsets", "return_prompt_text"), (False,)),
    **dict.fromkeys(("prompt_embeds", "audio", "prediction", "web_search_options", "moderation"), ()),
    **dict.fromkeys(("thinking_token_budget", "container", "context_management", "diagnostics", "inference_geo"), ()),
    **dict.fromkeys(("conversation", "background_options", "access_programs"), ()),
    **dict.fromkeys(("repetition_detection", "watermarking", "mm_payload", "kv_transfer_params"), ()),
    **dict.fromkeys(("ec_transfer_params", "logits_processors"), ()),
    **dict.fromkeys(FORMER_STRUCTURED_OUTPUTS, ()),
    # of calls to models that embed or classify
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    **dict.fromkeys(FORMER_USE_ACTIVATION, ()),
}

_CHATS = "/v1/chat/completions has tools and reasoning"

#: the alternative, where SAMPLING_FIELDS does not give one
INSTEAD: dict[str, str] = {
    **dict.fromkeys(FORMER_STRUCTURED_OUTPUTS, "use structured_outputs, or response_format"),
    **dict.fromkeys(FORMER_USE_ACTIVATION, "use use_activation, where the model embeds or classifies"),
    **dict.fromkeys(("embed_dtype", "endianness"), "embeddings are float32, and as bytes little-endian"),
    "tools": _CHATS,
    "suffix": "put what follows into the prompt, in the form that the model knows",
    "prompt_embeds": "prompts are text or token ids",
    "store": "/v1/responses stores, this route does not",
    "service_tier": "there is one tier; use priority",
    "logits_processors": "functions run offline only; use logit_bias, allowed_token_ids and bad_words",
    "repetition_detection": "/v1/chat/completions and /v1/responses have it",
    "conversation": "/v1/responses continues a response by previous_response_id",
    "reasoning_effort": _CHATS,
    "vllm_xargs": "there are no plugins",
    **dict.fromkeys(("modalities", "audio"), "models read and write text"),
    **dict.fromkeys(("mm_payload", "media_io_kwargs", "mm_processor_kwargs"), "models read text only"),
    **dict.fromkeys(("tool_choice", "include_reasoning", "thinking"), _CHATS),
    **dict.fromkeys(("functions", "function_call"), "their successors are tools and tool_choice"),
}


def instead_of(name: str) -> str | None:
    """The alternative to a field, as the end of a sentence."""
    known = SAMPLING_FIELDS.get(name)
    return INSTEAD.get(name, known.instead if known is not None else None)


def explain(body: bytes, kind: type[T]) -> T:
    """The struct, if fields that ask for nothing were its only fault. Raises ApiError, which names the field."""
    try:
        raw = msgspec.json.decode(body)
    except RecursionError:
        raise ApiError(400, "the request's body is nested too deeply, no request needs that", code="bad_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the request's body is not JSON in UTF-8: {error}", code="bad_json") from None
    if not isinstance(raw, dict):
        raise ApiError(400, f"the request's body is {shown(raw)}, allowed is an object", code="bad_json")
    known = set(kind.__struct_fields__)
    kept = {}
    for name, value in raw.items():
        if name in known:
            kept[name] = _whole(name, value)
        elif name not in NO_EFFECT and value is not None:
            _check_neutral(name, value, known)
        elif name not in NO_EFFECT and name not in NEUTRAL:
            raise _unknown(name, known)
    try:
        return msgspec.convert(kept, kind)
    except msgspec.ValidationError as error:
        raise _mistyped(str(error), kept) from None


def _whole(name: str, value: Any) -> Any:
    """3.0 is 3: some languages know numbers of one kind only. name: of the field; Ollama's options are fields, too."""
    if name == "options" and isinstance(value, dict):
        return {key: _whole(key, one) for key, one in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _check_neutral(name: str, value: object, known: set[str]) -> None:
    """Refuse a field that asks for something this engine lacks. True is not 1."""
    if name not in NEUTRAL:
        raise _unknown(name, known)
    allowed = NEUTRAL[name]
    if any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in allowed):
        return
    nothing = " or ".join(["leaving it out", *(msgspec.json.encode(one).decode() for one in allowed)])
    message = f"is {shown(value)}, which this engine does not support; allowed is {nothing}"
    instead = instead_of(name)
    raise bad_field(name, f"{message}: {instead}" if instead else message, "unsupported_parameter")


def _unknown(name: str, known: set[str]) -> ApiError:
    message = f"there is no parameter {shown(name)}; {suggestion(name, known)}"
    return ApiError(400, message, param=name[:64], code="unknown_parameter")


def _mistyped(message: str, raw: dict[str, Any]) -> ApiError:
    """msgspec's message, with the value added."""
    match = _PLACE.match(message)
    assert match is not None, "the pattern matches any text"
    what, path = match["what"], match["path"] or ""
    if (missing := _MISSING.match(what)) is not None:
        name = f"{path}.{missing[1]}".lstrip(".")
        return ApiError(400, f"{name} is missing, it is required", param=name, code="missing_required_parameter")
    param = re.split(r"[.\[]", path)[0]
    expected = _EXPECTED.match(what)
    if expected is None or not path:
        return ApiError(400, f"{path or 'the body'}: {what}", param=param or None, code="invalid_value")
    allowed = expected["allowed"].replace("`", "").replace(" | ", " or ")
    return ApiError(400, f"{path} is {shown(_at(raw, path))}, allowed is {allowed}", param=param, code="invalid_type")


def _at(raw: Any, path: str) -> object:
    """The value at `a[3].b`; all of `a` where the path says only `a[...]`."""
    value = raw
    for key, index in re.findall(r"(\w+)|\[(\d+|\.\.\.)\]", path):
        if index == "...":
            return value
        value = value[int(index)] if index else value[key]
    return value
