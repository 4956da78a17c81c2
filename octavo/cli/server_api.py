"""The client of `octavo chat` and `octavo complete`: OpenAI's API over HTTP, with streamed answers.

One connection per call. Closing it tells the server to stop generating.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from octavo.errors import ConfigError, ServerError

CONNECT_TIMEOUT_S = 10.0
#: characters quoted of an answer that is not in OpenAI's format
_SHOWN_LEN = 200
_MAX_ERROR_BYTES = 2**16


class ServerApi:
    """url: includes the API's prefix, as for OpenAI's clients: http://localhost:8000/v1."""

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url)
        try:
            self._host, self._port = parts.hostname, parts.port
        except ValueError:
            self._host = None
        if parts.scheme not in ("http", "https") or not self._host or parts.username or parts.query:
            raise ConfigError(f"--url is {url!r}, allowed is an address such as http://localhost:8000/v1")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("the API key holds a character that is not printable ASCII, which no header can carry")
        self.url = url.rstrip("/")
        self._is_secure = parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def models(self) -> list[dict[str, Any]]:
        """The served models: at least one, each with its id."""
        with closing(self._connect()) as connection, self._ask(connection, "GET", "/models", None) as answer:
            body = _json(self._read(answer))
        found = body.get("data") if isinstance(body, dict) else None
        if not isinstance(found, list) or not found or not all(isinstance(one, dict) and "id" in one for one in found):
            raise self._not_openai(json.dumps(body))
        return found

    def events(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The chunks of a streamed answer. Leaving the loop also stops the server's generation."""
        asked = {**body, "stream": True}
        with closing(self._connect()) as connection, self._ask(connection, "POST", path, asked) as answer:
            kind = answer.getheader("Content-Type", "")
            if not kind.startswith("text/event-stream"):
                raise self._not_openai(f"content of type {kind!r}")
            for data in self._data(answer):
                if data == b"[DONE]":
                    return
                chunk = _json(data)
                if not isinstance(chunk, dict):
                    raise self._not_openai(data.decode(errors="replace"))
                if "error" in chunk:
                    raise ServerError(f"the server stopped in the middle of the answer: {_message(chunk)}")
                yield chunk
        raise ServerError("the server closed the connection in the middle of the answer; its log may say why")

    def _connect(self) -> http.client.HTTPConnection:
        """Connecting has a timeout; an answer has none (Ctrl-C stops it)."""
        assert self._host is not None, "the address was checked"
        connection: http.client.HTTPConnection
        if self._is_secure:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_TIMEOUT_S, context=context)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_TIMEOUT_S)
        try:
            connection.connect()
        except OSError as error:
            raise ServerError(
                f"no server answers at {self.url} ({error}): start one with `octavo serve MODEL`, "
                "or name another with --url"
            ) from None
        connection.sock.settimeout(None)
        return connection

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: dict[str, Any] | None
    ) -> http.client.HTTPResponse:
        """The response, with its headers read. Raises ServerError for an error status."""
        content = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, self._prefix + path, content, self._headers)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from None
        if answer.status == 200:
            return answer
        text = self._read(answer, _MAX_ERROR_BYTES)
        message = _message(_json(text)) or text.decode(errors="replace")[:_SHOWN_LEN] or answer.reason
        cure = {
            401: "; give the key with --api-key or in OPENAI_API_KEY",
            404: f"; --url is {self.url}, and OpenAI's API is usually under /v1",
        }
        raise ServerError(f"the server answered {answer.status}: {message}{cure.get(answer.status, '')}")

    def _data(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        """The data of each event; comments and other fields are skipped."""
        try:
            for line in answer:
                if line.startswith(b"data:"):
                    yield line[5:].strip()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from None

    def _read(self, answer: http.client.HTTPResponse, most: int | None = None) -> bytes:
        try:
            return answer.read(most)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> ServerError:
        return ServerError(f"the connection to {self.url} broke: {error or type(error).__name__}")

    def _not_openai(self, got: str) -> ServerError:
        return ServerError(
            f"the server at {self.url} does not speak OpenAI's API, it sent {got[:_SHOWN_LEN]}: check --url"
        )


def _json(text: bytes) -> Any:
    """The parsed value, or None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _message(body: Any) -> str | None:
    """The message of an error in OpenAI's format."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else None
