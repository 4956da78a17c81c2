"""One streamed answer as the client sees it: the time of each piece of text, and the number of tokens.

bytes of the body --> events, cut at blank lines --> pieces with their times; the last event has the usage

This runs for every chunk of every stream, so an event is decoded once, and only into the fields that are read.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import msgspec

from octavo.bench.http_client import Client

MAX_ERROR_LEN = 300  # characters of an error message that are kept


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


@dataclass(slots=True)
class Answer:
    """The measurements of one request. Times are seconds of this host's monotonic clock, which all processes share.

    gaps: seconds between two pieces of one choice. A piece is an event with text: one token, or several if the server
    joined them. num_output_tokens: from the usage, or the number of pieces without one (has_usage is False).
    num_cached_tokens: prompt tokens from the server's prefix cache, if reported.
    """

    index: int
    start: float = 0.0
    first: float = 0.0
    last: float = 0.0
    gaps: array[float] = field(default_factory=lambda: array("d"))
    num_pieces: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    has_usage: bool = False
    error: str = ""
    text: str = ""

    @property
    def ttft(self) -> float:
        return self.first - self.start

    @property
    def e2el(self) -> float:
        return self.last - self.start


class AnswerReader:
    """Feeds the body of one streamed response into an Answer."""

    def __init__(self, answer: Answer, keep_text: bool = False) -> None:
        self.answer = answer
        self._rest = b""
        self._last_by_choice: dict[int, float] = {}
        self._texts: list[str] | None = [] if keep_text else None
        self._is_done = False
        self._has_finished = False  # a choice gave its finish reason

    def feed(self, body: bytes, now: float) -> None:
        """Some bytes of the body, received at `now`. Events may be split anywhere."""
        data = self._rest + body if self._rest else body
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._rest = data.split(b"\n\n")
        for event in events:
            payload = event[5:] if event.startswith(b"data:") else _payload(event)
            if payload.lstrip()[:1] == b"{":
                self._read(payload, now)
            elif payload.strip() == b"[DONE]":
                self._is_done = True

    def end(self, num_prompt_tokens: int) -> None:
        """The body has ended. num_prompt_tokens: the prompt's length, if the server sent no usage."""
        answer = self.answer
        if not answer.error and not self._is_done and not self._has_finished:
            answer.error = "the stream ended before the answer did"
        if not answer.error and answer.num_pieces == 0:
            # All tokens were special or incomplete characters: only the end was visible.
            answer.first = answer.last
        if not answer.has_usage:
            answer.num_prompt_tokens = num_prompt_tokens
            answer.num_output_tokens = answer.num_pieces
        if self._texts is not None:
            answer.text = "".join(self._texts)

    def _read(self, payload: bytes, now: float) -> None:
        answer = self.answer
        try:
            chunk = _decode(payload)
        except msgspec.MsgspecError as error:
            answer.error = answer.error or f"an unreadable event: {error}: {_shown(payload)}"
            return
        if chunk.error is not None:
            answer.error = answer.error or _shown(msgspec.json.encode(chunk.error))
        if chunk.usage is not None and chunk.usage.completion_tokens is not None:
            answer.has_usage = True
            answer.num_prompt_tokens = chunk.usage.prompt_tokens
            answer.num_output_tokens = chunk.usage.completion_tokens
            details = chunk.usage.prompt_tokens_details
            answer.num_cached_tokens = (details.cached_tokens or 0) if details is not None else 0
        for choice in chunk.choices:
            answer.last = now
            if choice.finish_reason is not None:
                self._has_finished = True
            text = _text(choice)
            if text is not None:
                self._take_piece(choice.index, text, now)

    def _take_piece(self, choice: int, text: str, now: float) -> None:
        answer = self.answer
        if answer.num_pieces == 0:
            answer.first = now
        answer.num_pieces += 1
        before = self._last_by_choice.get(choice)
        if before is not None:
            answer.gaps.append(now - before)
        self._last_by_choice[choice] = now
        if self._texts is not None:
            self._texts.append(text)


async def stream(
    client: Client, request: bytes, answer: Answer, num_prompt_tokens: int, keep_text: bool = False
) -> None:
    """Send a request and fill in `answer`, including any error."""
    reader = AnswerReader(answer, keep_text)
    status = 0
    refused = bytearray()

    def on_body(body: bytes, now: float) -> None:
        reader.feed(body, now)
        if answer.num_pieces == 0 and len(refused) < MAX_ERROR_LEN:
            refused.extend(body)

    answer.start = time.monotonic()
    try:
        status = await client.send(request, on_body)
    except OSError as error:
        answer.error = answer.error or f"{type(error).__name__}: {error}"
    if status >= 300:
        answer.error = f"HTTP {status}: {_shown(bytes(refused))}"
    reader.end(num_prompt_tokens)


def _text(choice: _Choice) -> str | None:
    """The piece in this event; None without a token, as in a chat's first event or with only a finish reason. An empty
    text before the end of a completion is a piece: a token that completes no character yet."""
    delta = choice.delta
    if delta is None:
        return choice.text if choice.text or (choice.text is not None and choice.finish_reason is None) else None
    return delta.content or delta.reasoning_content or delta.reasoning or ("" if delta.tool_calls else None)


def _payload(event: bytes) -> bytes:
    """The data of an event that begins with a comment, an event name or an id."""
    return b"".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:"))


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")[:MAX_ERROR_LEN]
