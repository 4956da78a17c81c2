"""Answers that may be large: made on a thread, encoded in pieces, and sent in pieces, so that the loop stays free."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.outputs import RequestOutput
from octavo.server.api_errors import JSON
from octavo.server.json_pieces import json_pieces
from octavo.server.openai_calls import Call
from octavo.server.serving import Serving

#: tokens, log-probabilities or sixteenths of characters; to tell of fewer takes a millisecond or two
SMALL_ANSWER = 2048


async def answer(
    serving: Serving, size: int, make: Callable[[], msgspec.Struct], headers: Mapping[str, str] | None = None
) -> Response:
    """The response with what `make` returns. size: how much there is to tell of, about; see SMALL_ANSWER."""
    if size <= SMALL_ANSWER:
        return Response(b"".join(json_pieces(make())), headers=headers, media_type=JSON)
    return _Pieces(await serving.lanes.run("answers", lambda: list(json_pieces(make()))), headers)


def answer_size(call: Call, outputs: list[RequestOutput], echo: str) -> int:
    """How much there is to tell of; see SMALL_ANSWER. echo: what is told again, with each sample."""
    texts = len(echo) * call.params.n + sum(len(one.text) for output in outputs for one in output.outputs)
    ids = 0
    if call.has_token_ids:
        ids = sum(len(o.prompt_token_ids) + sum(len(one.token_ids) for one in o.outputs) for o in outputs)
    return call.num_logprobs + texts // 16 + ids


class _Pieces(Response):
    """A response of known length whose body is written piece by piece, as fast as its client takes it."""

    def __init__(self, pieces: list[bytes], headers: Mapping[str, str] | None) -> None:
        self._pieces = pieces
        self.status_code = 200
        self.background = None
        self.body = b""
        length = sum(map(len, pieces))
        self.init_headers({**(headers or {}), "content-type": JSON, "content-length": str(length)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pieces, self._pieces = self._pieces, []
        pieces.reverse()
        while pieces:
            await send({"type": "http.response.body", "body": pieces.pop(), "more_body": bool(pieces)})
