"""Log-probabilities in the two shapes of OpenAI's API, and in vLLM's for prompts.

JSON has no infinities and no NaN: a token that cannot be drawn has -9999.0, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

from octavo.outputs import Logprob, TokenLogprobs
from octavo.server.responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)

_LOWEST = -9999.0


class Telling(Protocol):
    """How a call wants logprobs told; an openai_calls.Call is one. token_text: of a token that has no logprob."""

    @property
    def num_top(self) -> int | None: ...

    @property
    def as_token_ids(self) -> bool: ...

    @property
    def token_text(self) -> Callable[[int], str]: ...


def completion_logprobs(
    call: Telling, token_ids: Sequence[int], rows: Sequence[TokenLogprobs | None], offset: int
) -> tuple[CompletionLogprobs, int]:
    """-> the tokens' log-probabilities, and the offset of what comes next. rows: None for a prompt's first token."""
    num_top, as_token_ids = call.num_top or 0, call.as_token_ids
    tokens: list[str] = []
    offsets: list[int] = []
    logprobs: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for token_id, row in zip(token_ids, rows, strict=True):
        chosen = Logprob(0.0, decoded_token=call.token_text(token_id)) if row is None else row[token_id]
        token = _token(token_id, chosen, as_token_ids)
        tokens.append(token)
        offsets.append(offset)
        offset += len(token)
        logprobs.append(None if row is None else _finite(chosen.logprob))
        tops.append(None if row is None else _best(row, token_id, num_top, as_token_ids))
    return CompletionLogprobs(text_offset=offsets, token_logprobs=logprobs, tokens=tokens, top_logprobs=tops), offset


def chat_logprobs(call: Telling, token_ids: Sequence[int], rows: Sequence[TokenLogprobs]) -> ChatLogprobs:
    num_top, as_token_ids = call.num_top or 0, call.as_token_ids
    content = []
    for token_id, row in zip(token_ids, rows, strict=True):
        chosen = _top_logprob(token_id, row[token_id], as_token_ids)
        best = [_top_logprob(one, logprob, as_token_ids) for one, logprob in _ranked(row, num_top)]
        content.append(
            ChatTokenLogprob(token=chosen.token, logprob=chosen.logprob, bytes=chosen.bytes, top_logprobs=best)
        )
    return ChatLogprobs(content=content)


def prompt_logprobs(rows: Sequence[TokenLogprobs | None]) -> PromptLogprobs:
    return [
        None
        if row is None
        else {
            str(token_id): PromptLogprob(logprob=_finite(one.logprob), rank=one.rank, decoded_token=one.decoded_token)
            for token_id, one in row.items()
        }
        for row in rows
    ]


def _best(row: TokenLogprobs, chosen: int, num_top: int, as_token_ids: bool) -> dict[str, float]:
    """The best alternatives, and the chosen token if it is none of them. Different tokens may read alike: the
    likelier one is told."""
    best: dict[str, float] = {}
    for token_id, logprob in [*_ranked(row, num_top), (chosen, row[chosen])]:
        best.setdefault(_token(token_id, logprob, as_token_ids), _finite(logprob.logprob))
    return best


def _ranked(row: TokenLogprobs, num_top: int) -> list[tuple[int, Logprob]]:
    ranked = sorted(row.items(), key=lambda item: item[1].rank or 0)
    return list(islice(ranked, num_top if num_top >= 0 else None))


def _top_logprob(token_id: int, logprob: Logprob, as_token_ids: bool) -> TopLogprob:
    token = _token(token_id, logprob, as_token_ids)
    is_whole = logprob.decoded_token is not None and "\ufffd" not in logprob.decoded_token
    return TopLogprob(
        token=token,
        logprob=_finite(logprob.logprob),
        bytes=list((logprob.decoded_token or "").encode()) if is_whole else None,
    )


def _token(token_id: int, logprob: Logprob, as_token_ids: bool) -> str:
    return f"token_id:{token_id}" if as_token_ids or logprob.decoded_token is None else logprob.decoded_token


def _finite(logprob: float) -> float:
    return logprob if logprob > _LOWEST else _LOWEST
