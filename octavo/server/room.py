"""What the requests of a front end share: threads for what takes long, and room for log-probabilities.

    short       up to 64 thousand characters, two at a time
    long        up to a million
    huge        more: one at a time, since it takes a hundred bytes of memory a byte and seconds
    templates   chat templates that requests bring: foreign programs, which may take as long as they are let
    answers     large answers and lists, in Python: one at a time, since such threads take turns with the loop

Each of these lanes has threads and a queue of its own, so who comes with little never waits behind who comes with much,
and the streams of everyone else go on. What runs there lets go of the interpreter, or is made of small pieces: a thread
alone would not free the loop.

A log-probability is a hundred bytes of JSON and as much of memory, and a body of a few megabytes can ask for a billion.
So what one answer would hold is counted at the door; and what all answers that are being made hold together is bounded
too: who asks for many waits until there is room, who asks for few never does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Literal, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.engine.llm_engine import ModelInfo
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.api_errors import ApiError

T = TypeVar("T")

Lane = Literal["short", "long", "huge", "templates", "answers"]

_NUM_THREADS: dict[Lane, int] = {"short": 2, "long": 2, "huge": 1, "templates": 1, "answers": 1}

#: tokens that a sequence is taken to have where its request names no max_tokens
_USUAL_MAX_TOKENS = 16384
#: requests that hold fewer never wait
_FEW = 2**14


class Lanes:
    """Owner of a front end's threads for its requests. All calls from the event loop's thread."""

    def __init__(self) -> None:
        self._executors: dict[Lane, ThreadPoolExecutor] = {}

    async def run(self, lane: Lane, work: Callable[[], T]) -> T:
        """Work that has not begun when its caller is cancelled never does."""
        if lane not in self._executors:
            self._executors[lane] = ThreadPoolExecutor(_NUM_THREADS[lane], thread_name_prefix=f"octavo-{lane}")
        return await asyncio.get_running_loop().run_in_executor(self._executors[lane], work)


def lane_for(size: int) -> Lane:
    """size: characters, or things of which each takes as long."""
    if size <= 64 * 1024:
        return "short"
    return "long" if size <= 2**20 else "huge"


def count_logprobs(
    prompts: Sequence[Sequence[int]], params: SamplingParams, info: ModelInfo, *, names_limit: bool, is_streamed: bool
) -> int:
    """Log-probabilities that the answer holds at most. names_limit: max_tokens is the request's own. A stream holds
    those of its prompts only; the others are sent as they come."""

    def width(num_top: int | None) -> int:
        return 0 if num_top is None else 1 + (info.vocab_size if num_top < 0 else num_top)

    most = params.max_tokens if params.max_tokens is not None else info.max_model_len
    num_new = most if names_limit else min(most, _USUAL_MAX_TOKENS)
    asked = max(width(params.logprobs), width(len(tuple(params.logprob_token_ids or ())) or None))
    of_output = 0 if is_streamed else len(prompts) * params.n * num_new * asked
    keep = params.truncate_prompt_tokens
    num_prompt = sum(len(one) if keep is None or keep < 0 else min(len(one), keep) for one in prompts)
    return num_prompt * width(params.prompt_logprobs) + of_output


def check_logprobs(num: int, most: int) -> None:
    if num > most:
        raise ApiError(
            400,
            f"the answer could hold {num} log-probabilities (tokens x (alternatives + 1), of all prompts and samples), "
            f"allowed are {most}: ask for fewer alternatives or tokens (max_tokens, n), send the prompts in several "
            "requests, set stream, or start the server with a larger --max-logprobs-per-request",
            param="logprobs",
            code="too_many_logprobs",
        )


class LogprobRoom:
    """Owner of a front end's room for log-probabilities: first come, first served."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, num: int) -> Share:
        """Waits until there is room."""
        if num <= _FEW:
            return Share(self, 0)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((num, turn))
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            self._leave(num, turn)
            raise
        return Share(self, num)

    def held(self, num: int, outputs: AsyncGenerator[RequestOutput]) -> AsyncGenerator[RequestOutput]:
        """The same outputs, with room for so many while they come."""
        return outputs if num <= _FEW else self._held(num, outputs)

    async def _held(self, num: int, outputs: AsyncGenerator[RequestOutput]) -> AsyncGenerator[RequestOutput]:
        async with aclosing(outputs):
            with await self.take(num):
                async for output in outputs:
                    yield output

    def give_back(self, num: int) -> None:
        self._left += num
        self._let_in()

    def _leave(self, num: int, turn: asyncio.Future[None]) -> None:
        """Its task was cancelled, which cancels the turn, too, unless that had come."""
        if turn.done() and not turn.cancelled():
            self._left += num
        else:
            self._waiting.remove((num, turn))
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._left:
            num, turn = self._waiting.popleft()
            self._left -= num
            turn.set_result(None)


class Share:
    """What one request has taken. It is given back at the end of a `with` block, or, if an answer was made there, when
    that is sent."""

    def __init__(self, room: LogprobRoom, num: int) -> None:
        self._room = room
        self._num = num
        self._is_lent = False

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_lent:
            self.give_back()

    def until_sent(self, response: Response) -> Response:
        if not self._num:
            return response
        self._is_lent = True
        return _Holding(response, self)

    def give_back(self) -> None:
        num, self._num = self._num, 0
        if num:
            self._room.give_back(num)


class _Holding(Response):
    """A response that takes room until it is sent, or cannot be."""

    def __init__(self, response: Response, share: Share) -> None:
        self._response = response
        self._share = share
        self.status_code = response.status_code
        self.background = None
        self.raw_headers = response.raw_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            self._share.give_back()
