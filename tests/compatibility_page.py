"""Writes docs/compatibility.md: which of vLLM's options, parameters, routes and methods Octavo has.

    python -m tests.compatibility_page > docs/compatibility.md

Supported names come from the options, parameters, routes and request structs; missing ones from
`octavo/vllm_options.py`, whose sentences are also the error messages. This file adds only what differs from vLLM under
the same name, and what vLLM lacks. A test regenerates the page and compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from octavo import AsyncLLM, SamplingParams, vllm_options
from octavo.config import EngineConfig
from octavo.llm import LLM
from octavo.pooling_params import PoolingParams
from octavo.server.anthropic_protocol import MessagesRequest
from octavo.server.app import OPTIONAL_ROUTES, ROUTES
from octavo.server.bodies import NEUTRAL, NO_EFFECT, instead_of
from octavo.server.protocol import ChatCompletionRequest, CompletionRequest, TokenizeRequest
from octavo.server.responses.protocol import ResponsesRequest
from octavo.server.sessions import ROUTES as SESSION_ROUTES
from octavo.server.settings import LIMITS, RESPONSE_LIMITS, SESSION_LIMITS, ServerSettings
from octavo.server_config import AdmissionConfig, ServerConfig, TransferConfig
from octavo.vllm_options import NotHere

SAME = "the same"
OWN = "Octavo's own"

#: vLLM's names with another meaning or default
DIFFERENT: dict[str, dict[str, str]] = {
    "options": {
        "model": "names of packaged models and .gguf files, too",
        "dtype": "`auto` computes on quantised weights as the file stores them",
        "load_format": "`auto` takes .safetensors and .gguf files",
        "attention_backend": "names Octavo's own: `cuda`, `hopper`, `triton`, `flash_attn_4`",
        "device": "a GPU by its number, `cuda:1`; `backend` chooses between GPU and CPU",
        "distributed_executor_backend": "`uni`, `mp` or `ray`; several ranks are `mp` unless `ray` is asked for",
        "enable_expert_parallel": "the ranks of one engine divide the experts; several engines do not",
        "eplb_config": "without `communicator`; one that is given needs `enable_eplb`",
        "kv_cache_dtype": "of 8-bit types `fp8` (e4m3) and `int8`, with a scale for each layer or KV head",
        "calculate_kv_scales": "by pseudorandom tokens at the start, not by the first request",
        "block_size": "16 by default everywhere",
        "kv_cache_memory_bytes": "on a CPU by default a quarter of free memory, 4 GiB at most",
        "max_num_batched_tokens": "512 by default on a CPU",
        "async_scheduling": "by default on GPUs, and where workers have processes of their own",
        "chat_template": "runs in a separate process, with limits on time and memory",
        "reasoning_parser": "by default as the chat template shows",
        "revision": "of hub models",
        "lora_modules": "also offline, for requests that name an adapter without its path",
        "max_lora_rank": "any number up to 256",
        "lora_dtype": "what numbers are rounded to; they are held in the type that the device computes in",
        "convert": "`classify` needs a checkpoint with a head for classes",
        "generation_config": "sampling defaults alone: end tokens stay the model's",
        "override_generation_config": "the same keys; others are refused, and `null` takes a default away",
        "pooler_config": "as JSON or a dict, with `pooling_type` (or `seq_pooling_type`) and `use_activation`",
    },
    "flags": {
        "api_key": "required on all routes but health checks; also in `x-api-key`, `OCTAVO_API_KEY` or a file",
        "enable_auto_tool_choice": "on by default",
        "tool_call_parser": "by default as the chat template shows",
        "timeout_keep_alive": "65 s, longer than clients and proxies keep connections",
        "shutdown_timeout": "requests still running then end as `abort`",
    },
    "parameters": {
        one.name: one.metadata["differs"] for one in fields(SamplingParams) if one.metadata["differs"] is not None
    },
    "pooling": {"truncate_prompt_tokens": "cuts the end of a text, inside its special tokens"},
    "routes": {
        "/pooling": "texts and token ids, no messages; `encoding_format` float or base64",
        "/load": "counts requests, and needs no flag",
        "/metrics": "vLLM's names, and more under `octavo:`",
        "/health": "503 while the engine restarts",
        "/v1/models": "one model, under its served names, and its adapters",
        "/v1/load_lora_adapter": "from folders inside `lora_root`, which takes the place of an environment variable",
        "/v1/unload_lora_adapter": "where there is a `lora_root`",
        "/v1/responses": "with function tools; kept by default, within limits",
        "/v1/responses/{id}": "also DELETE",
    },
    "fields": {
        "prompt": "no embeddings",
        "messages": "text only",
        "chat_template": "only where the server trusts them",
    },
    "methods": {"chat": "also takes a text or one message"},
}

#: names that vLLM lacks
OURS: dict[str, frozenset[str]] = {
    "options": frozenset(
        {
            *("backend", "num_threads", "activation_dtype", "event_log_size", "check_invariants", "max_bypasses"),
            *("schedule_conservativeness", "trace_ops", "record", "record_token_ids"),
            *("data_parallel_routing", "deterministic", "lora_root"),
        }
    ),
    "flags": frozenset(
        {
            *("queue_timeout", "engine_hang_timeout", "front_end_hang_timeout", "api_key_file", "timeout_request_head"),
            *("prefill_engines", "role", "kv_listen", "kv_peer", "kv_transfer_timeout", "kv_min_tokens"),
            *("timeout_request_body", "max_idle_connections", *LIMITS, *SESSION_LIMITS, "session_timeout"),
            *(*RESPONSE_LIMITS, "responses_store", "stored_response_timeout"),
        }
    ),
    "pooling": frozenset(),
    "parameters": frozenset({"truncate_prompt_tokens", "num_beam_groups", "diversity_penalty"}),
    "routes": frozenset(
        {
            *(
                "/",
                "/events",
                "/memory_map",
                "/api/chat",
                "/api/embed",
                "/api/embeddings",
                "/api/generate",
                "/api/tags",
                "/api/show",
                "/api/ps",
                "/api/version",
            ),
            *(path for _, path, _ in SESSION_ROUTES),
            "/v1/responses/{id}/input_items",
        }
    ),
    "fields": frozenset(),
    "methods": frozenset(
        {
            "stream",
            "session",
            "events",
            "save_events",
            "card",
            "memory",
            "memory_map",
            "stats",
            "close",
            "is_alive",
            "model_info",
            "metrics",
        }
        | {"snapshot"}
    ),
}

_NOT_LIVE = "close the engine and start a new one: it takes about a second"
#: vLLM's routes that Octavo lacks -> the alternative
ROUTES_NOT_HERE: dict[str, str] = {
    "/v1/audio/transcriptions, /v1/audio/translations, /v1/realtime": "models read text only",
    "/invocations": "use /v1/chat/completions",
    "/sleep, /wake_up, /is_sleeping, /pause, /resume": _NOT_LIVE,
    "/init_weight_transfer_engine, /update_weights and their like": _NOT_LIVE,
    "/reset_prefix_cache": "`LLM.reset_prefix_cache` offline; `cache_salt` separates requests",
    "/server_info, /collective_rpc": "the start-up card shows what runs",
    "/start_profile, /stop_profile": "use your own profiler; `/metrics` and traces report times",
    "/inference/v1/generate": "send token ids as the prompt of /v1/completions, and `return_token_ids`",
    "/abort_requests": "close the connection: the request ends within a step",
}


def page() -> str:
    """The page's text."""
    parts = [_HEAD]
    options = [field for section in fields(EngineConfig) for field in fields(section.default_factory)]  # type: ignore[arg-type]
    parts.append(_section("Options of `LLM`, `AsyncLLM` and the command line", "option", _here("options", options)))
    parts.append(_missing("option", vllm_options.ENGINE_OPTIONS))
    flags = [
        field
        for section in (ServerConfig, AdmissionConfig, TransferConfig, ServerSettings)
        for field in fields(section)
    ]
    parts.append(_section("Further flags of `serve`", "flag", _here("flags", flags)))
    parts.append(_missing("flag", vllm_options.SERVER_FLAGS))
    parts.append(_section("`SamplingParams`", "field", _here("parameters", fields(SamplingParams))))
    parts.append(_missing("field", vllm_options.SAMPLING_FIELDS))
    parts.append(_section("`PoolingParams`", "field", _here("pooling", fields(PoolingParams))))
    parts.append(_missing("field", vllm_options.POOLING_FIELDS))
    parts.append(_section("Methods", "method", [(f"`{name}`", _told("methods", name)) for name in _methods()]))
    parts.append(_table(("not here", "instead"), [(f"`{name}`", text) for name, text in vllm_options.METHODS.items()]))
    paths = dict.fromkeys(path for _, path, _ in (*ROUTES, *OPTIONAL_ROUTES))
    parts.append(_section("Routes", "route", [(f"`{path}`", _told("routes", path)) for path in paths]))
    parts.append(_table(("not here", "instead"), [(f"`{path}`", text) for path, text in ROUTES_NOT_HERE.items()]))
    parts.append(_section("Fields of requests", "field", [(f"`{name}`", _told("fields", name)) for name in _fields()]))
    accepted = ", ".join(f"`{name}`" for name in sorted(NO_EFFECT))
    parts.append(f"Accepted, and without effect on any answer: {accepted}.\n")
    parts.append(_table(("not here", "accepted", "instead"), _missing_fields()))
    return "\n".join(parts)


def _here(kind: str, options: Iterable[Field[Any]]) -> list[tuple[str, str, str]]:
    return [(f"`{option.name}`", _default(option), _told(kind, option.name)) for option in options]


def _told(kind: str, name: str) -> str:
    if name in OURS[kind]:
        return OWN
    return DIFFERENT[kind].get(name, SAME)


def _default(option: Field[Any]) -> str:
    value = option.default if option.default_factory is MISSING else option.default_factory()
    return f"`{getattr(value, 'name', value)!s}`" if value not in ("", ()) else ""


def _methods() -> list[str]:
    """The methods of LLM, then further ones of AsyncLLM."""
    return list(dict.fromkeys(name for one in (LLM, AsyncLLM) for name in vars(one) if not name.startswith("_")))


def _fields() -> list[str]:
    structs = (CompletionRequest, ChatCompletionRequest, ResponsesRequest, MessagesRequest, TokenizeRequest)
    return list(dict.fromkeys(name for struct in structs for name in struct.__struct_fields__))


def _missing_fields() -> list[tuple[str, str, str]]:
    rows = []
    for name, values in NEUTRAL.items():
        told = instead_of(name) or "there is nothing in its place"
        rows.append((f"`{name}`", ", ".join(f"`{value}`" for value in (None, *values)), told))
    return rows


def _section(title: str, what: str, rows: list[Any]) -> str:
    columns = (what, "default", "here") if len(rows[0]) == 3 else (what, "here")
    return f"## {title}\n\n{_table(columns, rows)}"


def _missing(what: str, table: Mapping[str, NotHere]) -> str:
    rows = [(f"`{name}`", _accepted(entry), entry.instead) for name, entry in table.items()]
    return _table((f"{what} not here", "accepted", "instead"), rows)


def _accepted(entry: NotHere) -> str:
    if entry.is_idle:
        return "any value"
    return ", ".join(f"`{value}`" for value in (None, False, *entry.nothing))


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


_HEAD = """# vLLM's names, and which of them Octavo has

Generated from the code by `python -m tests.compatibility_page`; a test keeps it up to date. The names are those of
vLLM 0.33. "The same" means the same name, meaning and default, as far as vLLM's documentation and our tests show.
Names that Octavo lacks are refused with the texts below, unless their value asks for nothing, as `None` always does.
"""

if __name__ == "__main__":
    print(page(), end="")
