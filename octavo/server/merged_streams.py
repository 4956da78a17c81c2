"""MergedStreams: several streams of outputs as one, such as those of a call's prompts or of a session's branches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from octavo.errors import InvalidRequestError
from octavo.outputs import RequestOutput
from octavo.server.streaming import closing

#: prompts of a call that become engine requests without a pause
_STARTED_AT_ONCE = 16
#: outputs that may wait for a call's reader; beyond that the streams of its prompts wait, and lose nothing
_MAX_AHEAD = 64


class MergedStreams:
    """Several streams at once, to which others may be added while they run. The first that fails ends the others."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[RequestOutput | Exception | None] = asyncio.Queue(_MAX_AHEAD)
        self._pumps: dict[int, asyncio.Task[None]] = {}
        self._num_running = 0

    async def outputs(self, streams: Mapping[int, AsyncIterator[RequestOutput]]) -> AsyncGenerator[RequestOutput]:
        """Until all have ended. streams: those to begin with, each with a number of its own."""
        try:
            for place, (number, stream) in enumerate(streams.items()):
                if number not in self._pumps:  # else it was ended before it began
                    self.add(number, stream)
                if place % _STARTED_AT_ONCE == _STARTED_AT_ONCE - 1:
                    await asyncio.sleep(0)  # checking prompts takes time, and other calls must go on
            while self._num_running:
                item = await self._queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    self._num_running -= 1
                else:
                    yield item
        finally:
            for pump in self._pumps.values():
                pump.cancel()
            await asyncio.gather(*self._pumps.values(), return_exceptions=True)

    def add(self, number: int, stream: AsyncIterator[RequestOutput]) -> None:
        self._pumps[number] = asyncio.create_task(_pump(number, stream, self._queue))
        self._num_running += 1

    async def end(self, number: int, last: RequestOutput) -> None:
        """End one stream, which frees its blocks. last: its last output, unless it has had one."""
        pump = self._pumps.get(number)
        if pump is None:
            self._num_running += 1
        elif pump.cancel():
            await asyncio.gather(pump, return_exceptions=True)
        else:
            return
        self._pumps[number] = asyncio.create_task(_put(self._queue, last, None))


async def _put(queue: asyncio.Queue[RequestOutput | Exception | None], *items: RequestOutput | None) -> None:
    for item in items:
        await queue.put(item)


async def _pump(
    place: int, outputs: AsyncIterator[RequestOutput], queue: asyncio.Queue[RequestOutput | Exception | None]
) -> None:
    try:
        async with closing(outputs):
            async for output in outputs:
                await queue.put(output)
        await queue.put(None)
    except InvalidRequestError as refusal:
        await queue.put(InvalidRequestError(f"prompt[{place}]: {refusal}"))
    except Exception as error:
        await queue.put(error)
