"""A call of many prompts whose client does not read: the waiting output is bounded."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from octavo.outputs import CompletionOutput, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.generation import Generation, stream

NUM_PROMPTS, NUM_OUTPUTS = 8, 1000


def test_outputs_that_nobody_reads_do_not_pile_up() -> None:
    num_made = 0

    class Client:
        async def generate(
            self, prompt: Any, params: Any, request_id: str, **rest: Any
        ) -> AsyncIterator[RequestOutput]:
            nonlocal num_made
            for number in range(NUM_OUTPUTS):
                num_made += 1
                is_last = number == NUM_OUTPUTS - 1
                one = CompletionOutput(index=0, text="a", token_ids=[1], finish_reason="length" if is_last else None)
                yield RequestOutput(request_id, None, prompt, [one], finished=is_last)
                await asyncio.sleep(0)

    async def lag() -> int:
        client: Any = Client()
        asked = Generation(request_id="call", prompts=[[1]] * NUM_PROMPTS, params=SamplingParams())
        num_read = 0
        async for _ in stream(client, asked):
            if num_read == 0:
                await asyncio.sleep(0.2)
                assert num_made < 200, "of 8000"
            num_read += 1
        return num_read

    assert asyncio.run(lag()) == NUM_PROMPTS * NUM_OUTPUTS == num_made
