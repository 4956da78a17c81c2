"""A whole answer, which is not streamed: all finished outputs as one response, and their usage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.outputs import RequestOutput
from octavo.server.answer_bodies import Usage, usage
from octavo.server.generation import complete
from octavo.server.json_pieces import answer
from octavo.server.openai_calls import Call
from octavo.server.serving import Serving
from octavo.server.streaming import CLIENT_CLOSED_REQUEST, cancelled_on_disconnect


async def whole_answer(
    request: Request,
    serving: Serving,
    call: Call,
    make: Callable[[list[RequestOutput]], msgspec.Struct],
    echo: str = "",
    run: Callable[[], Awaitable[list[RequestOutput]]] | None = None,
) -> Response:
    """The response that `make` builds of all finished outputs. echo: text repeated with each sample. run: has the
    engine make the outputs; None: those of the call's prompts."""
    async with cancelled_on_disconnect(request.receive):
        with await serving.logprob_room.take(call.num_logprobs) as share:
            outputs = await (complete(serving.client, call.generation) if run is None else run())
            size = _answer_size(call, outputs, echo)
            headers = serving.id_headers(call.known_as)
            return share.until_sent(await answer(serving.lanes, size, lambda: make(outputs), headers))
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _answer_size(call: Call, outputs: list[RequestOutput], echo: str) -> int:
    """In the units of json_pieces.SMALL_ANSWER."""
    texts = len(echo) * call.params.n + sum(len(one.text) for output in outputs for one in output.outputs)
    ids = sum(len(o.prompt_token_ids) + sum(len(one.token_ids) for one in o.outputs) for o in outputs)
    return call.num_logprobs + texts // 16 + (ids if call.has_token_ids else 0)


def total_usage(outputs: list[RequestOutput], num_thoughts: int | None = None) -> Usage:
    return usage(
        sum(len(output.prompt_token_ids) for output in outputs),
        sum(len(one.token_ids) for output in outputs for one in output.outputs),
        *(sum(output.num_cached_tokens for output in outputs), num_thoughts),
    )
