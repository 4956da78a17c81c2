"""Log-probabilities in the two shapes of OpenAI's API, and in vLLM's for prompts.

JSON has no infinities and no NaN: a token that cannot be drawn has -9999.0, the lowest value reported, as in vLLM; a
logit of +inf is 9999.0. A token that is part of a character reads as U+FFFD, so its bytes are reported too: as `bytes`
in chats, and as OpenAI's `bytes:\\xe2` in completions, where a token's text is the key of an alternative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from octavo.logprobs import Logprob, TokenLogprobs
from octavo.server.answer_bodies import ChatTokenLogprob, CompletionLogprobs, PromptLogprob, PromptLogprobs, TopLogprob
from octavo.server.json_pieces import LazyList
from octavo.text.detokenizer import TextStream

_LOWEST, _INFINITE = -9999.0, 9999.0


class LogprobFormat(Protocol):
    """How a call's logprobs are written; an openai_calls.Call is one. token_text: the text of a token without a
    logprob. token_bytes: None without a tokenizer."""

    @property
    def num_top(self) -> int | None: ...

    @property
    def as_token_ids(self) -> bool: ...

    @property
    def token_text(self) -> Callable[[int], str]: ...

    @property
    def token_bytes(self) -> Callable[[int], bytes] | None: ...


class TextPlace:
    """Where in a choice's text its next token begins. A hidden token or a part of a character adds no text. Without a
    stream every token adds its own."""

    def __init__(self, stream: TextStream | None, offset: int = 0) -> None:
        self._stream = stream
        self._offset = offset

    def step(self, token_id: int, token: str) -> int:
        """-> where this token begins."""
        begin = self._offset
        self._offset += len(token if self._stream is None else self._stream.push(token_id))
        return begin


def completion_logprobs(
    call: LogprobFormat, token_ids: Sequence[int], rows: Iterable[TokenLogprobs | None], place: TextPlace
) -> CompletionLogprobs:
    """place: moves past these tokens. rows: None for a prompt's first token."""
    num_top = call.num_top or 0
    tokens: list[str] = []
    offsets: list[int] = []
    logprobs: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for token_id, row in zip(token_ids, rows, strict=True):
        chosen = Logprob(0.0, decoded_token=call.token_text(token_id)) if row is None else row[token_id]
        token = _legacy_token(call, token_id, chosen)
        tokens.append(token)
        offsets.append(place.step(token_id, token))
        logprobs.append(None if row is None else _finite(chosen.logprob))
        tops.append(None if row is None else _best(call, row, token_id, num_top))
    return CompletionLogprobs(text_offset=offsets, token_logprobs=logprobs, tokens=tokens, top_logprobs=tops)


def chat_logprobs(
    call: LogprobFormat, token_ids: Sequence[int], rows: Iterable[TokenLogprobs]
) -> Iterator[ChatTokenLogprob]:
    num_top = call.num_top or 0
    for token_id, row in zip(token_ids, rows, strict=True):
        chosen = _top_logprob(call, token_id, row[token_id])
        best = [_top_logprob(call, one, row[one]) for one in _chosen_first(row, token_id, num_top)]
        if num_top >= 0:
            del best[num_top:]
        yield ChatTokenLogprob(token=chosen.token, logprob=chosen.logprob, bytes=chosen.bytes, top_logprobs=best)


def prompt_logprobs(rows: Iterable[TokenLogprobs | None]) -> PromptLogprobs:
    """A lazy list, since a prompt may be long."""
    return LazyList(map(_prompt_row, rows))  # type: ignore[return-value]  # a list in JSON


def _prompt_row(row: TokenLogprobs | None) -> dict[str, PromptLogprob] | None:
    if row is None:
        return None
    return {
        str(token_id): PromptLogprob(logprob=_finite(one.logprob), rank=one.rank, decoded_token=one.decoded_token)
        for token_id, one in row.items()
    }


def _best(call: LogprobFormat, row: TokenLogprobs, chosen: int, num_top: int) -> dict[str, float]:
    """The chosen token, then the best alternatives. Of tokens with the same text only the first is reported."""
    best: dict[str, float] = {}
    for token_id in _chosen_first(row, chosen, num_top):
        logprob = row[token_id]
        best.setdefault(_legacy_token(call, token_id, logprob), _finite(logprob.logprob))
    return best


def _chosen_first(row: TokenLogprobs, chosen: int, num_top: int) -> list[int]:
    """The chosen token, as in vLLM, then the num_top best others; -1: all others."""
    ranked = sorted(row, key=lambda token_id: row[token_id].rank or 0)
    best = ranked if num_top < 0 else ranked[:num_top]
    return [chosen, *(token_id for token_id in best if token_id != chosen)]


def _top_logprob(call: LogprobFormat, token_id: int, logprob: Logprob) -> TopLogprob:
    return TopLogprob(
        token=_token(token_id, logprob, call.as_token_ids),
        logprob=_finite(logprob.logprob),
        bytes=None if call.token_bytes is None else list(call.token_bytes(token_id)),
    )


def _legacy_token(call: LogprobFormat, token_id: int, logprob: Logprob) -> str:
    token = _token(token_id, logprob, call.as_token_ids)
    if "\ufffd" not in token or call.token_bytes is None:
        return token
    raw = call.token_bytes(token_id)
    is_text = raw == token.encode()
    return token if is_text else "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _token(token_id: int, logprob: Logprob, as_token_ids: bool) -> str:
    return f"token_id:{token_id}" if as_token_ids or logprob.decoded_token is None else logprob.decoded_token


def _finite(logprob: float) -> float:
    if logprob == math.inf:
        return _INFINITE
    return logprob if logprob > _LOWEST else _LOWEST
