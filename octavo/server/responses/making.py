"""MadeResponse: one response from its first output until it is kept; in the background it goes on without its client.

a client waits     outputs ──▶ events ──▶ kept ──▶ the last event
in the background  outputs ──▶ events ──▶ kept ──▶ the last event
                                 └──▶ a list ──▶ clients that follow it, from any event on
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from octavo.outputs import RequestOutput
from octavo.server.api_errors import ApiError, as_api_error
from octavo.server.json_pieces import json_pieces
from octavo.server.responses.events import ResponseEvents
from octavo.server.responses.protocol import Item, ResponseObject
from octavo.server.responses.store import ResponseStore
from octavo.server.responses.store_file import KeptResponse
from octavo.server.streaming import Events, Lanes

#: log-probabilities that the event loop reads and encodes itself; more take longer than a few milliseconds
_FEW_ROWS = 256


class MadeResponse:
    """owner: the key of its client. input: the items of its request."""

    def __init__(
        self, store: ResponseStore, lanes: Lanes, owner: str, events: ResponseEvents, items: list[Item]
    ) -> None:
        self.owner = owner
        self.input = msgspec.json.encode(items)
        self._events = events
        self._store = store
        self._lanes = lanes

    @property
    def response(self) -> ResponseObject:
        """As it is now."""
        return self._events.show()

    async def whole(self, output: RequestOutput) -> None:
        """All of it. Raises ApiError if the engine failed."""
        await self._add(output)
        await self._keep(None)

    async def stream(self, outputs: AsyncGenerator[RequestOutput]) -> AsyncGenerator[bytes]:
        """Its events. What fails before the first raises its error."""
        has_begun = False
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    if made := await self._add(output):
                        has_begun = True
                        yield b"".join(made)
        except Exception as error:
            if not has_begun:
                raise
            self._events.fail(as_api_error(error))
        await self._keep(None)
        yield b"".join(await self._last())

    async def _add(self, output: RequestOutput) -> list[bytes]:
        if sum(len(one.logprobs or ()) for one in output.outputs) > _FEW_ROWS:
            return await self._lanes.run("answers", lambda: self._events.add(output))
        return self._events.add(output)

    async def _last(self) -> list[bytes]:
        if self._events.num_logprobs > _FEW_ROWS:
            return await self._lanes.run("answers", self._events.last)
        return self._events.last()

    async def _keep(self, sent: list[bytes] | None) -> None:
        """If its request wants that. sent: the events of its stream."""
        response = self.response
        if not response.store:
            return

        def made() -> KeptResponse:
            return KeptResponse(
                id=response.id,
                owner=self.owner,
                previous=response.previous_response_id,
                input=self.input,
                body=b"".join(json_pieces(response)),
                events=None if sent is None else b"".join(sent),
            )

        response.store = await self._store.keep(response.id, made)


class BackgroundResponse(MadeResponse):
    """Its client has an answer already. keeps_events: for clients that follow it."""

    def __init__(
        self,
        store: ResponseStore,
        lanes: Lanes,
        owner: str,
        events: ResponseEvents,
        items: list[Item],
        *,
        keeps_events: bool,
    ) -> None:
        super().__init__(store, lanes, owner, events, items)
        self._sent: list[bytes] | None = [] if keeps_events else None
        self._has_ended = self._is_cancelled = self._is_made = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, outputs: AsyncGenerator[RequestOutput]) -> None:
        self._store.running[self.response.id] = self
        self._tell(self._events.begin())
        self._task = asyncio.create_task(self._run(outputs))
        await asyncio.sleep(0)  # a task that is cancelled before it begins would clear nothing away

    async def cancel(self) -> None:
        """Returns once it has ended."""
        assert self._task is not None, "it was started"
        if not self._is_made:
            self._is_cancelled = True
            self._task.cancel()
        await asyncio.wait([self._task])

    def follow(self, after: int) -> AsyncGenerator[bytes] | None:
        """Its events behind this sequence number, as they come. None: they are not kept."""
        return None if self._sent is None else self._follow(self._sent, after + 1)

    async def _follow(self, sent: list[bytes], place: int) -> AsyncGenerator[bytes]:
        while place < len(sent) or not self._has_ended:
            if place < len(sent):
                yield sent[place]
                place += 1
            else:
                self._news.clear()
                await self._news.wait()

    async def _run(self, outputs: AsyncGenerator[RequestOutput]) -> None:
        try:
            await self._make(outputs)
            self._is_made = True
            last = await self._last()
            await self._keep(None if self._sent is None else [*self._sent, *last])
            self._tell(last)
        finally:
            self._store.running.pop(self.response.id, None)
            self._has_ended = True
            self._news.set()

    async def _make(self, outputs: AsyncGenerator[RequestOutput]) -> None:
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    self._tell(await self._add(output))
        except asyncio.CancelledError:
            if not self._is_cancelled:
                raise
            self._events.cancel()
        except Exception as error:
            self._events.fail(as_api_error(error))

    def _tell(self, events: list[bytes]) -> None:
        if self._sent is not None and events:
            self._sent += events
            self._news.set()


class MadeEvents(Events[bytes]):
    """Events that are bytes already."""

    def output(self, output: bytes) -> bytes:
        return output

    def error(self, error: ApiError) -> bytes:
        body = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"
