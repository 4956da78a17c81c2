"""OpenAI's streamed answers: RequestOutputs as `data: {...}` chunks.

Most chunks differ from the one before only in a few characters of text. So the constant parts are encoded once per
stream, and such a chunk is three pieces of bytes:

    data: {"id":"cmpl-1", ... "choices":[{"index":0,"text":   " word"   ,"logprobs":null,"finish_reason":null}]}
    └─────────────────────── head ────────────────────────┘  └─ new ─┘  └───────────────── tail ───────────────┘

Chunks with anything else in them (logprobs, token ids, a finish reason, usage) are encoded as a whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from octavo.logprobs import TokenLogprobs
from octavo.outputs import CompletionOutput, RequestOutput
from octavo.server.answer_bodies import ChatLogprobs, Usage, request_times, usage
from octavo.server.api_errors import ApiError
from octavo.server.generation import raise_failure
from octavo.server.json_pieces import json_pieces
from octavo.server.logprobs import TextPlace, chat_logprobs, completion_logprobs
from octavo.server.openai_calls import Call
from octavo.server.reading import Reading, StreamedAnswer
from octavo.server.serving import Serving
from octavo.server.streaming import EventStream

#: rows of log-probabilities that the event loop encodes itself; with twenty alternatives each, in a few milliseconds
_FEW_ROWS = 256

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode
#: what a chat's piece of text may add, while it cannot be told what it is
_NOTHING: dict[str, Any] = {"delta": {}}


def stream_answer(
    serving: Serving,
    call: Call,
    shape: CompletionChunks | ChatChunks,
    outputs: AsyncGenerator[RequestOutput],
    places: Mapping[str, int] | None = None,
) -> EventStream[RequestOutput]:
    if call.num_logprobs:
        outputs = serving.logprob_room.held(call.num_logprobs, outputs)
    return serving.event_stream(outputs, OpenAIEvents(call, shape, places), serving.id_headers(call.known_as))


@dataclass(slots=True)
class Choice:
    """One sequence of the answer: what was sent, and what waits for stream_interval. place: the end of the text whose
    logprobs were sent; None for no logprobs. answer: reads its thoughts and calls; None: its text is all."""

    index: int
    head: bytes
    num_tokens: int = 0
    place: TextPlace | None = None
    has_sent: bool = False
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    answer: StreamedAnswer | None = None


class OpenAIEvents:
    """The events of one stream; see streaming.Events."""

    def __init__(
        self, call: Call, shape: CompletionChunks | ChatChunks, places: Mapping[str, int] | None = None
    ) -> None:
        """places: engine request id -> its place among the choices; it may grow. None: those of the call's prompts."""
        self._call = call
        self._shape = shape
        self._n = call.params.n
        if places is None:
            places = {call.generation.engine_request_id(i): i for i in range(len(call.generation.prompts))}
        self._places = places
        self._constant = {"id": call.id, "object": shape.object, "created": call.created, "model": call.model}
        self._opening = b"data: " + _encode(self._constant)[:-1] + b',"choices":['
        self._choices: dict[int, Choice] = {}
        self._tail = shape.after + (b'],"usage":null}\n\n' if call.has_usage else b"]}\n\n")
        has_more = call.num_top is not None or call.has_token_ids or call.has_usage_always
        self._is_bare = not has_more and call.stream_interval == 1
        self._is_plain = self._is_bare and shape.is_text
        self._last: RequestOutput | None = None
        self._prompts: dict[int, tuple[int, int]] = {}  # place -> prompt tokens, cached ones

    def output(self, output: RequestOutput) -> bytes:
        place = self._places[output.request_id]
        parts: list[bytes] = []
        if place not in self._prompts:
            self._open(place, output, parts)
        self._last = output
        first = place * self._n
        for completion in output.outputs:
            choice = self._choices[first + completion.index]
            choice.num_tokens += len(completion.token_ids)
            if self._is_plain and completion.finish_reason is None:
                if completion.text:
                    parts += (choice.head, _encode(completion.text), self._tail)
            else:
                self._add(place, choice, completion, output, parts)
        return b"".join(parts)

    def is_large(self, output: RequestOutput) -> bool:
        num_rows = sum(len(one.logprobs) for one in output.outputs if one.logprobs is not None)
        if self._places[output.request_id] not in self._prompts and output.prompt_logprobs is not None:
            num_rows += len(output.prompt_logprobs)
        return num_rows > _FEW_ROWS

    def end(self) -> bytes:
        if not self._call.has_usage:
            return DONE
        num_prompt = sum(num for num, _ in self._prompts.values())
        num_cached = sum(num for _, num in self._prompts.values())
        choices = self._choices.values()
        total = usage(num_prompt, sum(one.num_tokens for one in choices), num_cached, _num_thoughts(choices))
        top = {}
        if self._call.has_metrics and self._last is not None:
            top["metrics"] = request_times(self._last, total.completion_tokens)
        return b"data: " + _encode(self._body([], total, top)) + b"\n\n" + DONE

    def error(self, error: ApiError) -> bytes:
        return b"data: " + _encode(error.openai_body()) + b"\n\n" + DONE

    def _open(self, place: int, output: RequestOutput, parts: list[bytes]) -> None:
        """Begin the choices of one prompt."""
        self._prompts[place] = (len(output.prompt_token_ids), output.num_cached_tokens)
        choices = [
            Choice(index, self._opening + b'{"index":%d,' % index + self._shape.before)
            for index in range(place * self._n, (place + 1) * self._n)
        ]
        self._choices |= {choice.index: choice for choice in choices}
        for opening in self._shape.opening(place, choices, output):
            top = opening.pop("top", {})
            body = self._body([opening], self._usage_so_far(place, 0), top)
            if output.prompt_logprobs is None:
                parts += (b"data: ", _encode(body), b"\n\n")
            else:
                parts += (b"data: ", *json_pieces(body), b"\n\n")  # they may be many

    def _add(
        self, place: int, choice: Choice, completion: CompletionOutput, output: RequestOutput, parts: list[bytes]
    ) -> None:
        """A chunk with more than text, if enough tokens wait for one."""
        choice.text += completion.text
        choice.token_ids += completion.token_ids
        choice.logprobs += completion.logprobs or []
        is_end = completion.finish_reason is not None
        if choice.has_sent and not is_end and len(choice.token_ids) < self._call.stream_interval:
            return
        raise_failure(output)
        text, token_ids, rows = choice.text, choice.token_ids, choice.logprobs
        choice.text, choice.token_ids, choice.logprobs, choice.has_sent = "", [], [], True
        content = self._shape.fields(choice, text, token_ids, is_end)
        if content == _NOTHING and not (is_end or rows or self._call.has_token_ids):
            return
        if self._is_bare and not is_end and len(delta := content["delta"]) == 1 and "content" in delta:
            parts += (choice.head, _encode(delta["content"]), self._tail)
            return
        fields: dict[str, Any] = {"index": choice.index, **content}
        fields["logprobs"] = None if self._call.num_top is None else self._shape.logprobs(choice, token_ids, rows)
        fields["finish_reason"] = self._shape.finish_reason(choice, completion.finish_reason)
        if is_end or self._shape.always_has_stop_reason:
            fields["stop_reason"] = completion.stop_reason
        fields |= self._shape.nulls
        fields["token_ids"] = token_ids if self._call.has_token_ids else None
        body = self._body([fields], self._usage_so_far(place, choice.num_tokens), {})
        parts += (b"data: ", _encode(body), b"\n\n")

    def _usage_so_far(self, place: int, num_tokens: int) -> Usage | None:
        """One choice's usage, if every chunk has it. Thoughts are counted once, at the end."""
        if not self._call.has_usage_always:
            return None
        num_prompt, num_cached = self._prompts[place]
        return usage(num_prompt, num_tokens, num_cached)

    def _body(self, choices: list[dict[str, Any]], counts: Usage | None, top: dict[str, Any]) -> dict[str, Any]:
        body = {**self._constant, "choices": choices, **top}
        if self._call.has_usage or counts is not None:
            body["usage"] = counts
        return body


def _num_thoughts(choices: Collection[Choice]) -> int | None:
    """Tokens of thoughts, where answers are read for them."""
    counts = [one.answer.num_thought_tokens for one in choices if one.answer is not None]
    return sum(counts) if counts else None


class CompletionChunks:
    """What chunks of completions have of their own. echo: each prompt's text, if the answer begins with it."""

    object = "text_completion"
    #: what stands around the text of a plain choice, from its index to its end
    before = b'"text":'
    after = b',"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}'
    #: further null fields of every choice, as in vLLM
    nulls: Mapping[str, None] = {"prompt_token_ids": None}
    always_has_stop_reason = True
    is_text = True

    def __init__(self, call: Call, echo: list[str] | None) -> None:
        self._call = call
        self._echo = echo

    def fields(self, choice: Choice, text: str, token_ids: list[int], is_end: bool) -> dict[str, Any]:
        return {"text": text}

    def finish_reason(self, choice: Choice, reason: str | None) -> str | None:
        return reason

    def logprobs(self, choice: Choice, token_ids: list[int], rows: list[TokenLogprobs]) -> Any:
        assert choice.place is not None, "a place comes with the first output"
        return completion_logprobs(self._call, token_ids, rows, choice.place)

    def opening(self, place: int, choices: list[Choice], output: RequestOutput) -> list[dict[str, Any]]:
        """Choices to send, a chunk each, before a prompt's first text. "top": fields beside the choices."""
        echo = None if self._echo is None else self._echo[place]
        if self._call.num_top is not None:
            for choice in choices:
                choice.place = self._call.answer_place(output.prompt_token_ids, echo)
        if echo is None and not self._call.has_token_ids:
            return []
        nulls = dict.fromkeys(("logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids"))
        fields: dict[str, Any] = {"text": echo or "", **nulls}
        if echo is not None and self._call.num_top is not None and output.prompt_logprobs is not None:
            ids = output.prompt_token_ids
            echo_place = self._call.echo_place(ids, echo)
            fields["logprobs"] = completion_logprobs(self._call, ids, output.prompt_logprobs, echo_place)
        if self._call.has_token_ids:
            fields |= {"prompt_token_ids": output.prompt_token_ids, "token_ids": []}
        return [{"index": choice.index, **fields} for choice in choices]


class ChatChunks:
    """The same for chats. echo: the text of the message that the answer continues, if the answer repeats it. reading:
    how thoughts and calls are found; None: all text is content."""

    object = "chat.completion.chunk"
    before = b'"delta":{"content":'
    after = b'},"logprobs":null,"finish_reason":null,"token_ids":null}'
    nulls: Mapping[str, None] = {}
    always_has_stop_reason = False

    def __init__(self, call: Call, echo: str, reading: Reading | None = None) -> None:
        self._call = call
        self._echo = echo
        self._reading = reading
        self.is_text = reading is None

    def fields(self, choice: Choice, text: str, token_ids: list[int], is_end: bool) -> dict[str, Any]:
        if choice.answer is not None:
            return {"delta": choice.answer.delta(text, token_ids, is_end)}
        return {"delta": {"content": text} if text else {}}

    def finish_reason(self, choice: Choice, reason: str | None) -> str | None:
        has_calls = choice.answer is not None and choice.answer.has_calls
        return "tool_calls" if has_calls and reason == "stop" else reason

    def logprobs(self, choice: Choice, token_ids: list[int], rows: list[TokenLogprobs]) -> Any:
        return ChatLogprobs(content=list(chat_logprobs(self._call, token_ids, rows)))

    def opening(self, place: int, choices: list[Choice], output: RequestOutput) -> list[dict[str, Any]]:
        if self._reading is not None:
            for choice in choices:
                choice.answer = StreamedAnswer(self._reading)
        top = {"prompt_token_ids": output.prompt_token_ids if self._call.has_token_ids else None}
        fields = {"delta": {"role": "assistant", "content": self._echo}, "logprobs": None, "finish_reason": None}
        return [{"index": choice.index, **fields, "top": top} for choice in choices]
