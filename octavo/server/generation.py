"""One call's work for the engine: some prompts, each a request of its own, read as one stream.

POST {"prompt": ["a", "b"]} ── id "cmpl-1" ──┬── engine request "cmpl-1-0-5e1f09ab" ──┐
                                             └── engine request "cmpl-1-1-5e1f09ab" ──┴──▶ RequestOutputs, as they come
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field

from octavo.engine.llm_engine import EngineClient
from octavo.errors import InvalidRequestError
from octavo.outputs import RequestOutput
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.server.api_errors import ApiError

#: prompts of a call that become engine requests without a pause
_STARTED_AT_ONCE = 16
#: outputs that may wait for a call's reader; then its prompts' streams lag, and lose nothing by it
_MAX_AHEAD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """prompts: token ids. trace_headers: those of the call that continue its caller's trace. serial: this call's alone,
    for several may bring one id: a proxy's for all that it does for one page, or a client's that tries again."""

    request_id: str
    prompts: list[list[int]]
    params: SamplingParams
    priority: int = 0
    cache_salt: str | None = None
    trace_headers: Mapping[str, str] | None = None
    serial: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def engine_request_id(self, place: int) -> str:
        """What the engine calls the request of the prompt at this place."""
        return f"{self.request_id}-{place}-{self.serial}"


def stream(client: EngineClient, generation: Generation) -> AsyncGenerator[RequestOutput]:
    """What is new, as it comes. Whoever leaves early ends all of the call's requests."""
    return _run(client, generation, RequestOutputKind.DELTA)


async def complete(client: EngineClient, generation: Generation) -> list[RequestOutput]:
    """One finished output a prompt, in the order of the prompts."""
    places = {generation.engine_request_id(place): place for place in range(len(generation.prompts))}
    done: dict[int, RequestOutput] = {}
    async with contextlib.aclosing(_run(client, generation, RequestOutputKind.FINAL_ONLY)) as outputs:
        async for output in outputs:
            raise_failure(output)
            done[places[output.request_id]] = output
    return [done[place] for place in range(len(generation.prompts))]


def raise_failure(output: RequestOutput) -> None:
    """A sequence that the engine gave up on is the server's failure, not an answer."""
    for completion in output.outputs:
        if completion.finish_reason == "error":
            raise ApiError(500, f"the engine failed at this request: {completion.stop_reason}", code="engine_failure")


def ended_by_server() -> ApiError:
    """Of an answer that neither its model nor its client ended."""
    return ApiError(503, "the request was ended by the server; send it again", code="aborted")


async def _run(client: EngineClient, generation: Generation, kind: RequestOutputKind) -> AsyncGenerator[RequestOutput]:
    params = generation.params.replace(output_kind=kind)
    streams = [
        client.generate(
            prompt,
            params,
            generation.engine_request_id(place),
            priority=generation.priority,
            cache_salt=generation.cache_salt,
            trace_headers=generation.trace_headers,
        )
        for place, prompt in enumerate(generation.prompts)
    ]
    outputs: AsyncIterator[RequestOutput] = streams[0] if len(streams) == 1 else _merged(streams)
    async with _closing(outputs):
        async for output in outputs:
            yield output


async def _merged(streams: list[AsyncIterator[RequestOutput]]) -> AsyncGenerator[RequestOutput]:
    """All of them at once. The first that fails ends the others."""
    queue: asyncio.Queue[RequestOutput | Exception | None] = asyncio.Queue(_MAX_AHEAD)
    pumps: list[asyncio.Task[None]] = []
    try:
        for place, one in enumerate(streams):
            pumps.append(asyncio.create_task(_pump(place, one, queue)))
            if place % _STARTED_AT_ONCE == _STARTED_AT_ONCE - 1:
                await asyncio.sleep(0)  # to check a prompt takes its time, and others want theirs
        num_running = len(pumps)
        while num_running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_running -= 1
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    place: int, outputs: AsyncIterator[RequestOutput], queue: asyncio.Queue[RequestOutput | Exception | None]
) -> None:
    try:
        async with _closing(outputs):
            async for output in outputs:
                await queue.put(output)
        await queue.put(None)
    except InvalidRequestError as refusal:
        await queue.put(InvalidRequestError(f"prompt[{place}]: {refusal}"))
    except Exception as error:
        await queue.put(error)


@contextlib.asynccontextmanager
async def _closing(outputs: AsyncIterator[RequestOutput]) -> AsyncIterator[None]:
    """Leaving ends the stream now, not when it is collected."""
    try:
        yield
    finally:
        close = getattr(outputs, "aclose", None)
        if close is not None:
            await close()
