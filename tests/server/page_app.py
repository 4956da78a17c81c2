"""A server as the page sees it: the page itself, a scripted model, and real metrics.

A question chooses what happens: `say TEXT` streams the text back, `slow` streams without end, `fail STATUS` is
refused, `break` sends an error in the middle of a stream, `think` reasons before it answers and is cut short,
`call` calls a tool.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from octavo.observe.event_log import EventLog
from octavo.observe.events import Arrived, EngineStarted, Finished, FirstToken, Sampled, Scheduled, Started
from octavo.observe.metrics import EngineMetrics
from octavo.server.access import RequireKey
from octavo.server.operations import CONTENT_TYPE, content_security_policy, page


@dataclass
class FakeServer:
    """has_template: whether the model answers conversations. root_path: the prefix of every path.
    api_key: the key that /v1 requires, if any. keys: those that every route accepts, checked as the real server does.
    bodies: those of the chat requests received."""

    models: list[str] = field(default_factory=lambda: ["smollm2"])
    has_template: bool = True
    root_path: str = ""
    api_key: str | None = None
    keys: tuple[str, ...] = ()
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_streams_left: int = 0  # streams that their reader left before the end
    token_s: float = 0.0
    memory: dict[str, Any] = field(
        default_factory=lambda: {
            "num_blocks": 1000,
            "block_size": 16,
            "sequences": [[3, 40, [[1, 2, 4]]], [5, 37, [[1, 2, 7]]]],
            "cached": [9],
            "num_left_out": 0,
        }
    )
    url: str = ""

    def __post_init__(self) -> None:
        self.log = EventLog(0)
        self.log.start(EngineStarted(0.0, 1000, 16, 1, 1, 4096))
        self.metrics = EngineMetrics(self.log, model_name="smollm2")
        self._num_requests = 0

    def app(self) -> FastAPI:
        app = FastAPI()
        if self.keys:
            app.add_middleware(RequireKey, keys=self.keys)

        @app.get(self.root_path or "/")
        def index() -> Response:
            policy = {"Content-Security-Policy": content_security_policy()}
            return Response(page(self.root_path), headers=policy, media_type=CONTENT_TYPE)

        @app.get(f"{self.root_path}/metrics")
        def metrics() -> Response:
            return Response(self.metrics.exposition(), media_type="text/plain; version=0.0.4")

        @app.get(f"{self.root_path}/memory_map")
        def memory() -> Response:
            return JSONResponse(self.memory)

        @app.get(f"{self.root_path}/v1/models")
        def models(request: Request) -> Response:
            common = {"object": "model", "has_chat_template": self.has_template}
            data = {"object": "list", "data": [{"id": name, **common} for name in self.models]}
            return self.refusal(request) or JSONResponse(data)

        @app.post(f"{self.root_path}/v1/completions")
        async def completions(request: Request) -> Response:
            self.bodies.append(await request.json())
            return StreamingResponse(self.continued(), media_type="text/event-stream")

        @app.post(f"{self.root_path}/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            self.bodies.append(body)
            question = body["messages"][-1]["content"]
            if question.startswith("fail "):
                return failure(int(question.split()[1]), "said so on purpose")
            return self.refusal(request) or StreamingResponse(self.answer(question), media_type="text/event-stream")

        return app

    def refusal(self, request: Request) -> Response | None:
        if self.api_key is None or request.headers.get("authorization") == f"Bearer {self.api_key}":
            return None
        return failure(401, "Unauthorized")

    async def answer(self, question: str) -> AsyncIterator[str]:
        """Tokens as chunks, and the events an engine would write for them."""
        self._num_requests += 1
        name, is_done, num_tokens = str(self._num_requests), False, 0
        sequence_id = self._num_requests
        self.log.write(Arrived(time.monotonic(), name, 12, 1))
        self.log.write(Started(time.monotonic(), sequence_id, name, 0))
        self.log.write(Scheduled(time.monotonic(), 1, (sequence_id,), (0,), (12,), 0, 700))
        try:
            for token in self.tokens(question):
                if question == "break" and num_tokens == 3:
                    yield sse({"error": {"message": "the engine stopped", "code": 500}})
                    return
                await asyncio.sleep(self.token_s or (0.02 if question == "slow" else 0))
                num_tokens += 1
                if num_tokens == 1:
                    self.log.write(FirstToken(time.monotonic(), name))
                self.log.write(Sampled(time.monotonic(), 1, (sequence_id,), 1))
                if question == "call":
                    yield sse({"choices": [{"index": 0, "delta": {"tool_calls": [json.loads(token)]}}]})
                    continue
                kind = "reasoning_content" if question == "think" and num_tokens < 3 else "content"
                yield sse({"choices": [{"index": 0, "delta": {kind: token}, "finish_reason": None}]})
            reason = {"think": "length", "call": "tool_calls"}.get(question, "stop")
            yield sse({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
            yield sse({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": num_tokens}})
            yield "data: [DONE]\n\n"
            is_done = True
        finally:
            self.num_streams_left += not is_done
            self.log.write(Finished(time.monotonic(), sequence_id, name, "stop", num_tokens))

    async def continued(self) -> AsyncIterator[str]:
        for token in (" there", " was", " ink"):
            yield sse({"choices": [{"index": 0, "text": token, "finish_reason": None}]})
        yield sse({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        yield "data: [DONE]\n\n"

    def tokens(self, question: str) -> Iterator[str]:
        if question.startswith("say "):
            yield from (question[4:][i : i + 4] for i in range(0, len(question) - 4, 4))
        elif question == "call":
            for part in ({"name": "weather", "arguments": '{"city": '}, {"arguments": '"Rome"}'}):
                yield json.dumps({"index": 0, "function": part})
        elif question == "think":
            yield from ("so ", "then ", "the ", "answer")
        else:
            while True:
                yield "word "


def failure(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": status}}, status, headers={"Retry-After": "7"})


def sse(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event)}\n\n"


@contextmanager
def serving(fake: FakeServer) -> Iterator[FakeServer]:
    """The server in a thread, on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(fake.app(), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    yield fake
    server.should_exit = True
    thread.join(timeout=10)
    listener.close()
