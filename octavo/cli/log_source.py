"""An event log that a command reads: a file, or the last events of a running server."""

from __future__ import annotations

import http.client
import io
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from octavo.env import openai_api_key
from octavo.errors import ConfigError, ServerError
from octavo.observe.events import Event
from octavo.observe.flight_log import LogHeader, read_log, read_open_log
from octavo.shown import shown

TIMEOUT_S = 30.0
MAX_BYTES = 1 << 28


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def open_source(source: str, api_key: str | None = None) -> tuple[LogHeader, Iterator[Event]]:
    """A log's header and events. api_key: None takes OPENAI_API_KEY. Raises LogError, ServerError or ConfigError."""
    if "\0" in source:
        raise ConfigError(f"the log's name is {shown(source)}, which no file can have")
    if not is_url(source):
        return read_log(source)
    return read_open_log(io.BytesIO(_fetch(source, api_key if api_key is not None else openai_api_key())), source)


def _fetch(url: str, api_key: str | None) -> bytes:
    """What the server's /events says. url: the server's address; the prefix /v1 of its API may be on it."""
    base = url.rstrip("/").removesuffix("/v1").removesuffix("/events")
    if not urlsplit(base).netloc or not base.isascii() or not base.isprintable():
        raise ConfigError(f"the address is {shown(url)}, allowed is one such as http://localhost:8000")
    try:
        asked = urllib.request.Request(f"{base}/events")
        if api_key:
            asked.add_header("Authorization", f"Bearer {api_key}")
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        cure = "; give the key with --api-key or in OPENAI_API_KEY" if error.code == 401 else ""
        raise ServerError(f"the server answered {error.code} to GET {base}/events{cure}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ServerError(f"no events came from {base}/events: {error}") from None
    if len(body) > MAX_BYTES:
        raise ServerError(f"{base}/events sends more than {MAX_BYTES:,} bytes: it is no event log")
    return body
