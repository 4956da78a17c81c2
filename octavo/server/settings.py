"""ServerSettings: every option of the HTTP server's routes.

Each field is also a flag, as in `octavo/config.py`: `max_body_bytes` is `--max-body-bytes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from octavo.checked_fields import checked, knob
from octavo.errors import ConfigError

MAX_STREAM_INTERVAL = 2**16


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Who may call the routes, how much they read and what they answer."""

    served_model_name: tuple[str, ...] = knob(
        (), "names of the model in requests, the first one also in answers; default: the name it was loaded by"
    )
    api_key: tuple[str, ...] = knob(
        (),
        "keys; every request must send one, as 'Authorization: Bearer', 'x-api-key' or a browser's password; default: "
        "that in OCTAVO_API_KEY, or no key. Other users can see a command line: a file or the environment is safer",
    )
    api_key_file: str | None = knob(None, "a file of such keys, one per line; read when the server starts")
    root_path: str = knob(
        "", "the path under which a proxy shows the server, such as /llm; the proxy may cut it or not"
    )
    allowed_origins: tuple[str, ...] = knob(
        (), "web pages of these origins may call the server from a browser; * is every page; default: none"
    )
    allowed_methods: tuple[str, ...] = knob(("*",), "methods those pages may use")
    allowed_headers: tuple[str, ...] = knob(("*",), "headers those pages may send")
    allow_credentials: bool = knob(False, "whether those pages may send cookies and the like")
    trust_request_chat_template: bool = knob(
        False, "run chat templates sent in requests: programs, which get a process, a second and a gigabyte"
    )
    tool_call_parser: str | None = knob(
        None, "the format in which the model writes calls of tools; default: as its chat template shows; none: no calls"
    )
    enable_auto_tool_choice: bool = knob(
        True, "read calls that the model makes by itself (vLLM: only with this flag); a request's tool_choice decides"
    )
    return_tokens_as_token_ids: bool = knob(
        False, "write tokens in logprobs as 'token_id:7' unless a request says otherwise"
    )
    enable_request_id_headers: bool = knob(False, "send the request's id with every answer, in the header X-Request-Id")
    enable_force_include_usage: bool = knob(
        False, "send the token counts in every chunk of every stream, as if its request had asked for them"
    )
    enable_per_request_metrics: bool = knob(
        False, "send times with each answer: to its first token, in the queue, between tokens"
    )
    enable_tokenizer_info_endpoint: bool = knob(False, "serve /tokenizer_info, which includes the chat template")
    disable_fastapi_docs: bool = knob(False, "serve neither /docs nor /openapi.json")
    stream_interval: int = knob(
        1,
        "tokens per chunk of a stream, but for the first, unless a request says otherwise",
        at_least=1,
        at_most=MAX_STREAM_INTERVAL,
    )
    sse_keep_alive_interval: float = knob(
        0.0, "seconds without a token after which a stream sends a comment, for proxies that end quiet ones; 0: never"
    )
    max_body_bytes: int = knob(16 * 2**20, "most bytes of a request's body")
    max_body_values: int = knob(
        1_000_000, "most values in a body: a number or a text counts as one, a list, an object and a key as ten"
    )
    max_prompts_per_request: int = knob(1024, "most prompts in the list of one completions request")
    max_choices_per_request: int = knob(16384, "most prompts x n of one request")
    max_logprobs_per_request: int = knob(
        2_000_000,
        "most log-probabilities of one answer: tokens x (alternatives + 1), of all prompts and samples; all answers of "
        "a front end together hold twice as many at a time",
    )
    max_messages_per_request: int = knob(4096, "most messages of one conversation")
    max_stop_strings: int = knob(64, "most strings in a request's stop, and in its bad_words")
    max_stop_string_len: int = knob(1024, "most characters of each of them")

    max_sessions: int = knob(256, "most sessions that are kept; the routes need a server with one front end")
    max_session_tokens: int = knob(2**22, "most tokens in the branches of all sessions together")
    session_timeout: float = knob(600.0, "seconds without a call after which a session is dropped")

    responses_store: str | None = knob(
        None, "a file for the responses that /v1/responses keeps; default: in memory, which needs one front end"
    )
    max_stored_responses: int = knob(
        4096, "most responses that are kept; the one unused the longest makes room; 0: none is kept"
    )
    max_stored_response_bytes: int = knob(2**28, "most bytes of all of them together")
    stored_response_timeout: float = knob(86400.0, "seconds without a use after which a response is dropped")
    max_background_responses: int = knob(256, "most responses that are made in the background at a time")

    def __post_init__(self) -> None:
        if self.root_path and (self.root_path[0] != "/" or self.root_path[-1] == "/"):
            raise ConfigError(
                f"root_path is {self.root_path!r}, allowed is a path that begins with / and does not end with it: /llm"
            )
        if any(not key for key in self.api_key):
            raise ConfigError("api_key holds an empty key, allowed are keys of at least one character")
        if any(not name for name in self.served_model_name):
            raise ConfigError("served_model_name holds an empty name, allowed are names of at least one character")
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ConfigError(
                "allow_credentials is set and allowed_origins is *, so any page could act for its visitors: "
                "name the origins"
            )
        if not 0 <= self.sse_keep_alive_interval < math.inf:
            raise ConfigError(f"sse_keep_alive_interval is {self.sse_keep_alive_interval}, allowed is 0 or more")
        for name in ("session_timeout", "stored_response_timeout"):
            if not 0 < (seconds := getattr(self, name)) < math.inf:
                raise ConfigError(f"{name} is {seconds}, allowed is a number of seconds above 0")
        for name in (*LIMITS, *SESSION_LIMITS, *RESPONSE_LIMITS):
            if getattr(self, name) < (least := int(name != "max_stored_responses")):
                raise ConfigError(f"{name} is {getattr(self, name)}, allowed is {least} or more")
        if self.responses_store is not None and not self.max_stored_responses:
            raise ConfigError(
                f"responses_store is {self.responses_store!r} and max_stored_responses is 0, which keeps nothing: "
                "leave one of them out"
            )

    def with_keys(self, otherwise: str | None = None) -> ServerSettings:
        """The settings with the keys of api_key_file, read now. otherwise: the key if there are none."""
        keys = self.api_key if self.api_key_file is None else (*self.api_key, *_read_keys(self.api_key_file))
        if not keys and otherwise is not None:
            keys = (otherwise,)
        return replace(self, api_key=keys, api_key_file=None)


SESSION_LIMITS = ("max_sessions", "max_session_tokens")
RESPONSE_LIMITS = ("max_stored_responses", "max_stored_response_bytes", "max_background_responses")
#: names of the limits of one request
LIMITS = tuple(
    one.name
    for one in fields(ServerSettings)
    if one.name.startswith("max_") and one.name not in (*SESSION_LIMITS, *RESPONSE_LIMITS)
)


def _read_keys(path: str) -> list[str]:
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file is {path!r}, which cannot be read: {error}") from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ConfigError(f"api_key_file is {path!r}, which holds no key, allowed are one or more, one a line")
    return keys
