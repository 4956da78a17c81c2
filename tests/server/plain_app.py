"""The smallest app that tests an engine client: JSON lines, without OpenAI's API."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from octavo.engine.llm_engine import EngineClient
from octavo.errors import EngineBusyError, EngineDeadError, InvalidRequestError
from octavo.sampling_params import RequestOutputKind, SamplingParams

STATUS = {InvalidRequestError: 400, EngineBusyError: 503, EngineDeadError: 503}


def create_app(client: EngineClient, settings: Any) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if client.is_alive else 503)

    @app.get("/pid")
    async def pid() -> int:
        import os

        return os.getpid()

    @app.get("/stats")
    async def stats() -> Any:
        return asdict(await client.stats())

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await client.metrics())

    @app.get("/memory_map")
    async def memory() -> Response:
        return Response(await client.memory_map())

    @app.get("/events")
    async def events() -> Response:
        return Response(await client.events())

    @app.post("/abort/{request_id}")
    async def abort(request_id: str) -> None:
        await client.abort(request_id)

    @app.post("/generate")
    async def generate(request: Request) -> Response:
        body = await request.json()
        params = SamplingParams(output_kind=RequestOutputKind.DELTA, **body["params"])
        outputs = client.generate(
            *(body["prompt"], params, body.get("request_id")),
            cache_salt=body.get("cache_salt"),
            data_parallel_rank=body.get("rank"),
        )
        try:
            first = await anext(outputs)
        except tuple(STATUS) as error:
            return JSONResponse(
                {"error": str(error), "retry_after_s": getattr(error, "retry_after_s", None)}, STATUS[type(error)]
            )
        return StreamingResponse(_lines(first, outputs), media_type="application/jsonl")

    return app


async def _lines(first: Any, outputs: Any) -> Any:
    yield _line(first)
    try:
        async for output in outputs:
            yield _line(output)
    except EngineDeadError as error:
        yield json.dumps({"error": str(error)}) + "\n"
    finally:
        await outputs.aclose()


def _line(output: Any) -> str:
    for one in output.outputs:
        one.logprobs = None if one.logprobs is None else list(one.logprobs)  # they are decoded when read
    line = asdict(output)
    line["prompt_token_ids"] = len(output.prompt_token_ids)
    return json.dumps(line) + "\n"
