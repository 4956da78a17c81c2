"""A small server of OpenAI's streaming API with scripted delays, pieces, faults and refusals."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from typing import Any

ROLE_EVENT = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


@dataclass
class FakeServer:
    """Runs in a separate thread. Every request is kept in `seen`, as (path, headers, body).

    gap_s: seconds between two events; tokens_per_event: how many tokens are joined into one;
    fault: None, or what goes wrong with every `fault_every`-th request.
    """

    gap_s: float = 0.0
    first_s: float = 0.0
    tokens_per_event: int = 1
    has_usage: bool = True
    is_chunked: bool = True
    keeps_alive: bool = True
    fault: str | None = None
    fault_every: int = 1
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    num_connections: int = 0
    num_open: int = 0
    most_open: int = 0

    def __enter__(self) -> FakeServer:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prompts(self) -> list[Any]:
        return [body["prompt"] for path, _, body in self.seen if path.endswith("completions")]

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        self.port: int = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """True if the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path = head[0].split()[1]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        self.seen.append((path, headers, json.loads(raw) if raw else None))
        if path == "/v1/models":
            return self._whole(writer, 200, {"data": [{"id": "fake/model"}]})
        is_faulty = self.fault is not None and (len(self.seen) - 1) % self.fault_every == 0
        if is_faulty and self.fault == "refuse":
            return self._whole(writer, 429, {"error": {"message": "too busy"}})
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            return await self._answer(writer, path, json.loads(raw), self.fault if is_faulty else None)
        finally:
            self.num_open -= 1

    def _whole(self, writer: asyncio.StreamWriter, status: int, content: Any) -> bool:
        body = json.dumps(content).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return True

    async def _answer(self, writer: asyncio.StreamWriter, path: str, body: Any, fault: str | None) -> bool:
        framing = "Transfer-Encoding: chunked\r\n" if self.is_chunked else "Connection: close\r\n"
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n".encode())
        is_chat = "chat" in path
        length = body["max_completion_tokens" if is_chat else "max_tokens"]
        if is_chat:
            self._event(writer, json.dumps(ROLE_EVENT))
        await asyncio.sleep(self.first_s)
        for index in range(0, length, self.tokens_per_event):
            if index and self.gap_s:
                await asyncio.sleep(self.gap_s)
            if fault == "cut" and index:
                writer.transport.abort()
                return False
            if fault == "error" and index:
                self._event(writer, '{"error": {"message": "the engine died"}}')
                break
            if fault == "hang" and index:
                await self._stop.wait()
                return False
            for choice in range(body.get("n", 1)):
                self._event(writer, json.dumps({"choices": [self._choice(is_chat, choice, index, length)]}))
        if self.has_usage:
            prompt_len = 7 if is_chat or isinstance(body["prompt"], str) else len(body["prompt"])
            usage = {"prompt_tokens": prompt_len, "completion_tokens": length * body.get("n", 1)}
            self._event(writer, json.dumps({"choices": [], "usage": usage}))
        self._event(writer, "[DONE]")
        if self.is_chunked:
            writer.write(b"0\r\n\r\n")
        return self.is_chunked and self.keeps_alive

    def _choice(self, is_chat: bool, choice: int, index: int, length: int) -> dict[str, Any]:
        text = "".join(f"t{index + one} " for one in range(min(self.tokens_per_event, length - index)))
        reason = "length" if index + self.tokens_per_event >= length else None
        piece: dict[str, Any] = {"delta": {"content": text}} if is_chat else {"text": text}
        return {"index": choice, "finish_reason": reason, **piece}

    def _event(self, writer: asyncio.StreamWriter, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n" if self.is_chunked else event)
