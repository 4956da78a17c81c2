"""The item that a response's text goes to at the moment, and the events that tell what becomes of it.

                    its part                                 its text
message             response.content_part                    response.output_text
thoughts            response.content_part                    response.reasoning_text
their summary       response.reasoning_summary_part          response.reasoning_summary_text
call                                                         response.function_call_arguments
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from octavo.server.answer_bodies import ChatTokenLogprob
from octavo.server.responses.protocol import (
    CallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    SummaryText,
)

_encode = msgspec.json.Encoder().encode


class Teller(Protocol):
    """Sends the events."""

    @property
    def place(self) -> int: ...
    def event(self, kind: str, fields: dict[str, Any]) -> None: ...
    def delta(self, head: bytes, text: str, tail: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class _Form:
    """part: kind of the events about the part; None: the item has none. text: about its text. index: the part's."""

    part: str | None
    text: str
    index: str | None


_MESSAGE = _Form("response.content_part", "response.output_text", "content_index")
_THOUGHTS = _Form("response.content_part", "response.reasoning_text", "content_index")
_SUMMARY = _Form("response.reasoning_summary_part", "response.reasoning_summary_text", "summary_index")
_CALL = _Form(None, "response.function_call_arguments", None)
Part = OutputText | ReasoningText | SummaryText


class OpenItem:
    """An item while its text grows."""

    def __init__(
        self, teller: Teller, item: OutputItem, form: _Form, part: Part | None, settle: Callable[[str], None]
    ) -> None:
        """part: the item's only one. settle: gives the item its whole text."""
        self.item = item
        self._teller = teller
        self._form = form
        self._part = part
        self._settle = settle
        self._texts: list[str] = []
        self._rows: list[ChatTokenLogprob] = []
        place = teller.place
        self._of_item = {"output_index": place, "item": item}
        self._where: dict[str, Any] = {"item_id": item.id, "output_index": place}
        if form.index is not None:
            self._where[form.index] = 0
        teller.event("response.output_item.added", self._of_item)
        if form.part is not None:
            teller.event(f"{form.part}.added", {**self._where, "part": part})
        kind = f"{form.text}.delta"
        self._head = b'event: %b\ndata: {"type":"%b","delta":' % (kind.encode(), kind.encode())
        fields = self._where | ({"logprobs": []} if isinstance(part, OutputText) else {})
        self._tail = _encode(fields)[1:-1] + b',"sequence_number":'

    def grow(self, text: str, rows: list[ChatTokenLogprob]) -> None:
        self._texts.append(text)
        if rows:
            self._rows += rows
            self._teller.event(f"{self._form.text}.delta", {**self._where, "delta": text, "logprobs": rows})
        elif text:
            self._teller.delta(self._head, text, self._tail)

    def show(self) -> None:
        """Let the item have its text so far."""
        self._settle("".join(self._texts))

    def close(self, status: ItemStatus) -> None:
        text = "".join(self._texts)
        self._settle(text)
        self.item.status = status
        done: dict[str, Any] = {**self._where, "arguments" if isinstance(self.item, CallItem) else "text": text}
        if isinstance(self.item, CallItem):
            done["name"] = self.item.name
        if isinstance(self._part, OutputText):
            done["logprobs"] = self._part.logprobs = self._rows
        self._teller.event(f"{self._form.text}.done", done)
        if self._form.part is not None:
            self._teller.event(f"{self._form.part}.done", {**self._where, "part": self._part})
        self._teller.event("response.output_item.done", self._of_item)


def open_message(teller: Teller) -> OpenItem:
    item, part = MessageItem(id=_id("msg")), OutputText(text="")

    def settle(text: str) -> None:
        part.text, item.content = text, [part]

    return OpenItem(teller, item, _MESSAGE, part, settle)


def open_thoughts(teller: Teller, has_summary: bool) -> OpenItem:
    """has_summary: they are told as their own summary, in full."""
    item = ReasoningItem(id=_id("rs"))
    if has_summary:
        summary = SummaryText(text="")

        def settle_summary(text: str) -> None:
            summary.text, item.summary = text, [summary]

        return OpenItem(teller, item, _SUMMARY, summary, settle_summary)
    content = ReasoningText(text="")

    def settle(text: str) -> None:
        content.text, item.content = text, [content]

    return OpenItem(teller, item, _THOUGHTS, content, settle)


def open_call(teller: Teller, name: str, call_id: str) -> OpenItem:
    item = CallItem(id=_id("fc"), call_id=call_id, name=name)

    def settle(text: str) -> None:
        item.arguments = text

    return OpenItem(teller, item, _CALL, None, settle)


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
