"""A scripted engine that checks requests as the real one does; and an ASGI client for routes."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from octavo.engine.core_protocol import EngineStats
from octavo.engine.input import InputProcessor
from octavo.engine.llm_engine import EngineClient, GenerateCall, has_ended
from octavo.engine.output import RequestText
from octavo.logprobs import Logprob, TokenLogprobs
from octavo.outputs import CompletionOutput, RequestMetrics, RequestOutput
from octavo.request import ModelInfo, Request, RequestLimits
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings
from octavo.text.tokenizer import Tokenizer
from tests.text.tokenizers import packaged

WORDS = (" one", " two", " three", " caf\u00e9")
IDS = (582, 827, 1296, 37366)  # of those words in smollm2's vocabulary
PART = 7365  # b"\xe3\x81", a part of a character
LIMITS = RequestLimits(max_model_len=128, max_num_seqs=4, max_logprobs=5, vocab_size=49152, eos_token_ids=(2,))


class ScriptedEngine(EngineClient):
    """Says WORDS to everyone. fault: raised before word number `fault_at`. first_pause: before the first word or the
    fault; pause: before every other.

    live: requests that have begun but not ended; 0 after all clients have left.
    """

    is_alive = True

    def __init__(
        self, *, fault: Exception | None = None, fault_at: int = 0, first_pause: float = 0.0, pause: float = 0.0
    ) -> None:
        self.fault, self.fault_at, self.first_pause, self.pause = fault, fault_at, first_pause, pause
        self.tokenizer: Tokenizer | None = packaged("smollm2")
        self.inputs = InputProcessor(self.tokenizer, LIMITS, seed=0)
        self.live = 0
        self.requests: list[Request] = []
        self.salts: list[str | None] = []
        self.ranks: list[int | None] = []

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo.of(LIMITS, SamplingParams(temperature=0.5), [])

    async def _outputs(self, call: GenerateCall) -> AsyncIterator[RequestOutput]:
        assert call.sampling_params is not None
        assert call.request_id is not None
        request = self.inputs.process(
            call.request_id, call.prompt, call.sampling_params, 0.0, call.priority, call.cache_salt
        )
        self.requests.append(request)
        self.salts.append(request.cache_salt)
        self.ranks.append(call.data_parallel_rank)
        self.live += 1
        try:
            async for output in self._say(request):
                yield output
        finally:
            self.live -= 1

    async def _say(self, request: Request) -> AsyncIterator[RequestOutput]:
        words = WORDS[: request.max_output_tokens]
        is_delta = request.sampling_params.output_kind is RequestOutputKind.DELTA
        await asyncio.sleep(self.first_pause)
        for number, word in enumerate(words):
            if self.fault is not None and number == self.fault_at:
                raise self.fault
            await asyncio.sleep(self.pause if number else 0)
            is_last = number == len(words) - 1
            if is_delta:
                yield self._output(request, [word], is_last)
        if not is_delta:
            yield self._output(request, list(words), True)

    def _output(self, request: Request, words: list[str], is_last: bool) -> RequestOutput:
        params = request.sampling_params
        ids = [IDS[WORDS.index(word)] for word in words]
        prompt_rows = None
        if params.prompt_logprobs is not None:
            prompt_rows = [None, *(self._row(one, params.prompt_logprobs) for one in request.prompt_token_ids[1:])]
        return RequestOutput(
            request_id=request.request_id,
            prompt=None,
            prompt_token_ids=request.prompt_token_ids,
            outputs=[
                CompletionOutput(
                    index=index,
                    text="".join(words),
                    token_ids=list(ids),
                    logprobs=self._rows(ids, params),
                    finish_reason="length" if is_last else None,
                )
                for index in range(params.n)
            ],
            finished=is_last,
            prompt_logprobs=prompt_rows,
            metrics=RequestMetrics(
                arrival_time=1.0,
                first_scheduled_time=1.25,
                first_token_time=1.5,
                finished_time=3.0 if is_last else None,
            ),
        )

    def _rows(self, ids: list[int], params: SamplingParams) -> list[TokenLogprobs] | None:
        if params.logprob_token_ids:
            asked = {one: Logprob(-5.0, 9 + one, f"asked{one}") for one in params.logprob_token_ids}
            return [self._row(one, 0) | asked for one in ids]
        return None if params.logprobs is None else [self._row(one, params.logprobs) for one in ids]

    def _row(self, token_id: int, num_top: int) -> TokenLogprobs:
        """A row of alternatives. The chosen token is the second best; its logprob is -infinity, like a banned one's."""
        chosen = WORDS[IDS.index(token_id)] if token_id in IDS else f"<{token_id}>"
        row: TokenLogprobs = {token_id: Logprob(float("-inf"), 2, chosen)}
        for rank in range(1, num_top + 1):
            if rank != 2:
                row[PART if rank == 1 else rank] = Logprob(-float(rank), rank, "\ufffd" if rank == 1 else f"top{rank}")
        return row

    async def snapshot(self, request_id: str) -> RequestText:
        raise has_ended()

    async def abort(self, request_id: str) -> None:
        raise AssertionError("routes end requests by leaving them")

    def get_tokenizer(self) -> Tokenizer | None:
        return self.tokenizer

    async def stats(self) -> EngineStats:
        return EngineStats(num_running=self.live, num_waiting=2, num_blocks=8, num_used_blocks=0)

    async def metrics(self) -> bytes:
        return b"octavo:up 1\n"

    async def memory_map(self, engine: int = 0) -> bytes:
        return b'{"num_blocks":8}'

    async def events(self, engine: int = 0) -> bytes:
        return b"a log"


def without_template(engine: ScriptedEngine) -> ScriptedEngine:
    """The same with the tokenizer of a model without a chat template."""
    engine.tokenizer = copy.copy(packaged("smollm2"))
    engine.tokenizer._chat_templates = {}
    return engine


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json()["error"]  # type: ignore[no-any-return]

    def events(self) -> list[Any]:
        """The data of each event; the last of OpenAI's is text."""
        lines = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


def app_of(engine: ScriptedEngine | None = None, **settings: Any) -> FastAPI:
    return create_app(engine or ScriptedEngine(), ServerSettings(**{"served_model_name": ("tiny",), **settings}))


def post(app: FastAPI, path: str, body: object, **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(call(app, "POST", path, data, {"content-type": "application/json", **headers}))


def get(app: FastAPI, path: str, **headers: str) -> Answer:
    return asyncio.run(call(app, "GET", path, b"", headers))


async def call(
    app: FastAPI,
    method: str,
    path: str,
    data: bytes,
    headers: Mapping[str, str],
    leave_after: int | None = None,
    meanwhile: Callable[[int], Awaitable[None]] | None = None,
) -> Answer:
    """leave_after: disconnect after that many pieces of the body; 0: as soon as the request was sent. meanwhile: called
    with the number of pieces after each."""
    answer, gone, sent = Answer(), asyncio.Event(), False
    if leave_after == 0:
        gone.set()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": data, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {key.decode().lower(): value.decode() for key, value in message["headers"]}
        elif message.get("body"):
            answer.chunks.append(message["body"])
            if leave_after is not None and len(answer.chunks) >= leave_after:
                gone.set()
            if meanwhile is not None:
                await meanwhile(len(answer.chunks))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.partition("?")[0],
        "raw_path": path.partition("?")[0].encode(),
        "query_string": path.partition("?")[2].encode(),
        "root_path": "",
        "headers": [(key.replace("_", "-").lower().encode(), value.encode()) for key, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return answer
