"""However much the engine sends, a front end receives for only a few milliseconds at a time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import zmq

from octavo.processes.process_client import ProcessClient
from octavo.processes.transport import StepNews, encode, engine_socket


@pytest.mark.parametrize("num_messages", [300])
def test_reading_much_news_lets_others_have_their_turn(num_messages: int, tmp_path: Path) -> None:
    async def story() -> tuple[int, float]:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        address = f"ipc://{tmp_path / 'engine'}"
        engine = engine_socket(context, address)
        client = ProcessClient(None, 0, 0)
        taken = 0

        def take(message: object) -> None:
            nonlocal taken
            taken += 1
            time.sleep(0.002)

        client.engines[0]._link._take = take  # type: ignore[assignment]
        client.connect(address)
        front_end, _ = await asyncio.to_thread(engine.recv_multipart)
        for _ in range(num_messages):
            engine.send_multipart((front_end, encode(StepNews(0.0, [], [], [], []))))
        longest, begin = 0.0, time.monotonic()
        last = begin
        while taken < num_messages and last - begin < 30:
            await asyncio.sleep(0)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        client.close()
        engine.close()
        context.term()
        return taken, longest

    taken, longest = asyncio.run(story())
    assert taken == num_messages
    assert longest < 0.3, "all of it at once takes 0.6 s"
