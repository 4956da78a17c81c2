"""Limits on log-probabilities: how many alternatives, how many in an answer, how many in a front end at a time.

A log-probability is a hundred bytes of JSON and as much memory, and a body of a few megabytes can ask for a billion.
So what an answer could hold is counted before the engine starts, and answers with many wait until earlier ones have
left room. Answers with few never wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.outputs import RequestOutput
from octavo.request import ModelInfo
from octavo.sampling_params import SamplingParams
from octavo.server.api_errors import ApiError, bad_field

#: the length assumed of a sequence whose request sets no max_tokens
_USUAL_MAX_TOKENS = 16384
#: answers with fewer never wait
_FEW = 2**14


def check_num_logprobs(info: ModelInfo, **counts: int | None) -> None:
    """How many alternatives a request may ask for, by the name of the field; -1 asks for all."""
    most = info.vocab_size if info.max_logprobs == -1 else min(info.max_logprobs, info.vocab_size)
    for name, count in counts.items():
        if count is not None and not (0 <= count <= most or (count == -1 and most == info.vocab_size)):
            also = ", and -1 for all" if most == info.vocab_size else ""
            raise bad_field(
                name,
                f"is {count}, allowed is 0 to {most}{also}: change it, or start the server with another "
                "--max-logprobs, where -1 allows the whole vocabulary",
            )


def count_logprobs(
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    info: ModelInfo,
    *,
    names_limit: bool,
    is_streamed: bool,
    allowed: int,
) -> int:
    """The most log-probabilities that the answer could hold; raises ApiError if that exceeds `allowed`. names_limit:
    the request itself sets max_tokens. A stream holds only its prompts'; the others are sent at once."""

    def width(num_top: int | None) -> int:
        return 0 if num_top is None else 1 + (info.vocab_size if num_top < 0 else num_top)

    most = params.max_tokens if params.max_tokens is not None else info.max_model_len
    num_new = most if names_limit else min(most, _USUAL_MAX_TOKENS)
    asked = max(width(params.logprobs), width(len(tuple(params.logprob_token_ids or ())) or None))
    of_output = 0 if is_streamed else len(prompts) * params.n * num_new * asked
    keep = params.truncate_prompt_tokens
    num_prompt = sum(len(one) if keep is None or keep < 0 else min(len(one), keep) for one in prompts)
    num = num_prompt * width(params.prompt_logprobs) + of_output
    if num > allowed:
        raise ApiError(
            400,
            f"the answer could hold {num} log-probabilities (tokens x (alternatives + 1), of all prompts and samples), "
            f"allowed are {allowed}: ask for fewer alternatives or tokens (max_tokens, n), send the prompts in several "
            "requests, set stream, or start the server with a larger --max-logprobs-per-request",
            param="logprobs",
            code="too_many_logprobs",
        )
    return num


class LogprobRoom:
    """A front end's room for log-probabilities; first come, first served."""

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
        """The same outputs, holding room for `num` log-probabilities until they end."""
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
        """Its task was cancelled, which cancels the turn too, unless it had already come."""
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
    """The room that one request has taken. The end of a `with` block gives it back, or, if a response was made there,
    the end of sending it."""

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
    """A response that holds room until it is sent or fails."""

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
