"""ResponseEvents: from the engine's outputs to a response and the events of its stream.

    text ──▶ answers.py: thoughts, content, calls ──▶ items, of which the last is open ──▶ ResponseObject
                                                                └──▶ events, numbered

response.created ── response.in_progress
   ── response.output_item.added ── its parts, their deltas ── response.output_item.done, for each item
   ── response.completed, response.incomplete or response.failed

A whole answer goes the same way, all of it at once, and its events are not made.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec

from octavo.outputs import CompletionOutput, RequestOutput
from octavo.server.answer_bodies import ChatTokenLogprob
from octavo.server.api_errors import ApiError
from octavo.server.generation import ended_by_server, raise_failure
from octavo.server.openai_calls import Call
from octavo.server.reading import Reading
from octavo.server.responses.open_items import OpenItem, open_call, open_message, open_thoughts
from octavo.server.responses.pieces import AnswerPieces
from octavo.server.responses.protocol import (
    IncompleteDetails,
    InputTokensDetails,
    ItemStatus,
    MessageItem,
    OutputTokensDetails,
    ReasoningItem,
    ResponseFault,
    ResponseObject,
    ResponseUsage,
)
from octavo.text.answers.events import CallBegun, CallBroken, CallEnded, CallGrown, Event, Said, Thought

_encode = msgspec.json.Encoder().encode
_INVALID, _FAILED = "invalid_prompt", "server_error"


class ResponseEvents:
    """One response while it is made."""

    def __init__(self, call: Call, reading: Reading | None, response: ResponseObject, *, has_events: bool) -> None:
        """reading: how thoughts and calls are found; None: all text is content."""
        self.response = response
        self._reading = reading
        self._pieces = AnswerPieces(call, reading)
        self._has_events = has_events
        self._made: list[bytes] = []
        self._num_made = 0
        self._open: OpenItem | None = None
        self._num_tokens = self._num_prompt = self._num_cached = 0

    # What happens to a response; each gives the new events

    def begin(self) -> list[bytes]:
        """It is queued."""
        self.response.status = "queued"
        for kind in ("response.created", "response.queued"):
            self.event(kind, {"response": self.response})
        return self._taken()

    def add(self, output: RequestOutput) -> list[bytes]:
        """Raises ApiError if the engine failed."""
        raise_failure(output)
        if self.response.usage is None:
            self._start(output)
        (completion,) = output.outputs
        self._num_tokens += len(completion.token_ids)
        for event, rows in self._pieces.add(completion):
            self._take(event, rows)
        if completion.finish_reason is not None:
            self._finish(completion)
        return self._taken()

    def last(self) -> list[bytes]:
        """The event of its end."""
        kind = "incomplete" if self.response.status == "cancelled" else self.response.status
        self.event(f"response.{kind}", {"response": self.response})
        return self._taken()

    def fail(self, error: ApiError) -> None:
        self._end("failed")
        code = _INVALID if error.status < 500 else _FAILED
        self.response.error = ResponseFault(code=code, message=error.message)

    def cancel(self) -> None:
        self._end("cancelled")

    def show(self) -> ResponseObject:
        """The response as it is now, with what its last item has so far."""
        if self._open is not None:
            self._open.show()
        return self.response

    def _start(self, output: RequestOutput) -> None:
        was_queued, self.response.status = self.response.status == "queued", "in_progress"
        for kind in ("response.in_progress",) if was_queued else ("response.created", "response.in_progress"):
            self.event(kind, {"response": self.response})
        self._num_prompt, self._num_cached = len(output.prompt_token_ids), output.num_cached_tokens
        self._count()

    def _count(self) -> None:
        self.response.usage = ResponseUsage(
            input_tokens=self._num_prompt,
            input_tokens_details=InputTokensDetails(cached_tokens=self._num_cached),
            output_tokens=self._num_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=self._pieces.num_thought_tokens),
            total_tokens=self._num_prompt + self._num_tokens,
        )

    def _take(self, event: Event, rows: list[ChatTokenLogprob]) -> None:
        match event:
            case Thought(text):
                if self._reading is not None and self._reading.has_reasoning:
                    self._in("reasoning").grow(text, [])
            case Said(text):
                self._say(text, rows)
            case CallBegun(_, name, given_id):
                assert self._reading is not None, "without it nothing is a call"
                self._close("completed")
                self._begin(open_call(self, name, self._reading.call_id(given_id, "call_")))
            case CallGrown(_, text):
                assert self._open is not None, "a call has begun"
                self._open.grow(text, [])
            case CallEnded():
                self._close("completed")
            case CallBroken():
                self._close("incomplete")
                self.response.output.pop()  # its text follows as content

    def _say(self, text: str, rows: list[ChatTokenLogprob]) -> None:
        """White space between calls is no message."""
        is_first = self._open is None or not isinstance(self._open.item, MessageItem)
        if is_first and self.response.output:
            text = text.lstrip()
        if text or rows:
            self._in("message").grow(text, rows)

    def _in(self, kind: Literal["message", "reasoning"]) -> OpenItem:
        """The open item of this kind."""
        wanted = MessageItem if kind == "message" else ReasoningItem
        if self._open is not None and isinstance(self._open.item, wanted):
            return self._open
        self._close("completed")
        if kind == "message":
            return self._begin(open_message(self))
        return self._begin(open_thoughts(self, has_summary=self.response.reasoning.summary is not None))

    def _begin(self, item: OpenItem) -> OpenItem:
        self._open = item
        self.response.output.append(item.item)
        return item

    def _close(self, status: ItemStatus) -> None:
        if self._open is not None:
            self._open.close(status)
            self._open = None

    def _end(self, status: Literal["completed", "incomplete", "failed", "cancelled"]) -> None:
        self._close("completed" if status == "completed" else "incomplete")
        if self.response.usage is not None:  # else no output came
            self._count()
        self.response.status = status

    def _finish(self, completion: CompletionOutput) -> None:
        if completion.finish_reason not in ("stop", "length", "repetition"):
            raise ended_by_server()
        is_cut = completion.finish_reason != "stop"
        if all(isinstance(one, ReasoningItem) for one in self.response.output) and not (is_cut and self._open):
            self._in("message")
        self._end("incomplete" if is_cut else "completed")
        self.response.completed_at = int(time.time())
        if is_cut:
            self.response.incomplete_details = IncompleteDetails(
                reason="max_output_tokens" if completion.finish_reason == "length" else "repetition"
            )

    @property
    def num_logprobs(self) -> int:
        return self._pieces.num_logprobs

    # What open items tell

    @property
    def place(self) -> int:
        """The number of the next item."""
        return len(self.response.output)

    def delta(self, head: bytes, text: str, tail: bytes) -> None:
        """An event that differs from the one before only in its text; head and tail are encoded once."""
        if self._has_events:
            self._made.append(b"%b%b,%b%d}\n\n" % (head, _encode(text), tail, self._num_made))
            self._num_made += 1

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        if self._has_events:
            body = _encode({"type": kind, "sequence_number": self._num_made, **fields})
            self._made.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), body))
            self._num_made += 1

    def _taken(self) -> list[bytes]:
        made, self._made = self._made, []
        return made
