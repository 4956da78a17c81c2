"""An answer in Anthropic's shape, whole or as events.

message_start ── content_block_start ── ping ── content_block_delta ...
             ── content_block_stop ── message_delta ── message_stop

With thoughts or calls there are several blocks, one open at a time: thinking, text, tool_use.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

import msgspec
from msgspec import UNSET

from octavo.outputs import CompletionOutput, RequestOutput
from octavo.server.anthropic_protocol import (
    AnthropicBlock,
    AnthropicUsage,
    MessagesRequest,
    MessagesResponse,
    OutputTokensDetails,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from octavo.server.api_errors import ApiError
from octavo.server.generation import ended_by_server, raise_failure
from octavo.server.reading import AnswerEvents, Reading
from octavo.server.streaming import Events
from octavo.text.answers.events import CallBegun, CallBroken, CallEnded, CallGrown, Event, Said, Thought

_encode = msgspec.json.Encoder().encode


class Message(Events[RequestOutput]):
    """The answer, whole or as events. As in chunks.py, constant parts are encoded once."""

    _HEAD = (
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":'
    )
    _TAIL = b"}}\n\n"

    def __init__(self, message_id: str, asked: MessagesRequest, max_model_len: int, reading: Reading | None) -> None:
        """reading: how thoughts and calls are found; None: all text is content."""
        self._id = message_id
        self._model = asked.model or ""
        self._max_tokens = asked.max_tokens
        self._max_model_len = max_model_len
        self._num_tokens = 0
        self._has_begun = False
        self._reading = reading
        self._blocks = None if reading is None else _Blocks(reading)
        self._has_calls = False
        self._num_thoughts: int | None = None

    def whole(self, output: RequestOutput) -> MessagesResponse:
        (completion,) = output.outputs
        self._num_tokens = len(completion.token_ids)
        content = self._content(completion)
        return self._message(output, content, *self._ending(completion, output))

    def _content(self, completion: CompletionOutput) -> list[AnthropicBlock]:
        if self._reading is None:
            return [TextBlock(text=completion.text)]
        answer = self._reading.read(completion.text, completion.token_ids)
        self._num_thoughts = answer.num_thought_tokens
        self._has_calls = bool(answer.calls)
        blocks: list[AnthropicBlock] = []
        if answer.reasoning and self._reading.has_reasoning:
            blocks.append(ThinkingBlock(thinking=answer.reasoning))
        if answer.content or not (blocks or answer.calls):
            blocks.append(TextBlock(text=answer.content))
        return blocks + [
            ToolUseBlock(id=_tool_id(), name=one.name, input=json.loads(one.arguments)) for one in answer.calls
        ]

    def output(self, output: RequestOutput) -> bytes:
        raise_failure(output)
        parts = [] if self._has_begun else [self._begin(output)]
        for completion in output.outputs:
            self._num_tokens += len(completion.token_ids)
            if self._blocks is not None:
                is_end = completion.finish_reason is not None
                parts.append(self._blocks.add(completion.text, completion.token_ids, is_end))
                if is_end:
                    self._has_calls, self._num_thoughts = self._blocks.has_calls, self._blocks.num_thought_tokens
            elif completion.text:
                parts += (self._HEAD, _encode(completion.text), self._TAIL)
            if completion.finish_reason is not None:
                parts.append(self._finish(completion, output))
        return b"".join(parts)

    def end(self) -> bytes:
        return _event("message_stop", {})

    def error(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + _encode(error.anthropic_body()) + b"\n\n"

    def _message(
        self,
        output: RequestOutput,
        content: list[AnthropicBlock],
        stop_reason: str | None = None,
        stop_sequence: str | None = None,
    ) -> MessagesResponse:
        return MessagesResponse(
            id=self._id,
            model=self._model,
            content=content,
            stop_reason=stop_reason,
            stop_sequence=stop_sequence,
            usage=self._usage(output),
        )

    def _usage(self, output: RequestOutput) -> AnthropicUsage:
        num = self._num_thoughts
        thoughts = UNSET if num is None else OutputTokensDetails(thinking_tokens=num)
        return AnthropicUsage(
            input_tokens=len(output.prompt_token_ids) - output.num_cached_tokens,
            cache_read_input_tokens=output.num_cached_tokens,
            output_tokens=self._num_tokens,
            output_tokens_details=thoughts,
        )

    def _ending(self, completion: CompletionOutput, output: RequestOutput) -> tuple[str, str | None]:
        """-> stop_reason, stop_sequence."""
        if completion.finish_reason == "stop":
            if self._has_calls:
                return "tool_use", None
            is_string = isinstance(completion.stop_reason, str)
            return ("stop_sequence", str(completion.stop_reason)) if is_string else ("end_turn", None)
        if completion.finish_reason == "length":
            is_full = len(output.prompt_token_ids) + self._num_tokens >= self._max_model_len
            is_context = is_full and self._num_tokens < self._max_tokens
            return "model_context_window_exceeded" if is_context else "max_tokens", None
        raise ended_by_server()

    def _begin(self, output: RequestOutput) -> bytes:
        self._has_begun = True
        begun = _event("message_start", {"message": self._message(output, [])})
        if self._blocks is None:
            begun += _event("content_block_start", {"index": 0, "content_block": TextBlock(text="")})
        return begun + _event("ping", {})

    def _finish(self, completion: CompletionOutput, output: RequestOutput) -> bytes:
        reason, sequence = self._ending(completion, output)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        ended = _event("content_block_stop", {"index": 0}) if self._blocks is None else b""
        return ended + _event("message_delta", {"delta": delta, "usage": self._usage(output)})


class _Blocks:
    """The blocks of a stream, of which the last is open."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._events = AnswerEvents(reading)
        self._kind = ""
        self._index = -1
        self.has_calls = False

    @property
    def num_thought_tokens(self) -> int:
        return self._events.num_thought_tokens

    def add(self, text: str, token_ids: list[int], is_end: bool) -> bytes:
        made = b"".join(map(self._event, self._events.add(text, token_ids, is_end)))
        if not is_end:
            return made
        if self._index < 0:
            made += self._open(TextBlock(text=""))
        return made + self._close()

    def _event(self, event: Event) -> bytes:
        match event:
            case Thought(text) if self._reading.has_reasoning:
                return self._in(ThinkingBlock(thinking="")) + self._delta("thinking", text)
            case Said(text):
                return self._in(TextBlock(text="")) + self._delta("text", text)
            case CallBegun(_, name):
                return self._open(ToolUseBlock(id=_tool_id(), name=name, input={}))
            case CallGrown(_, text):
                return self._delta("input_json", text)
            case CallEnded():
                self.has_calls = True
                return self._close()
            case CallBroken():
                return self._close()
        return b""

    def _in(self, block: AnthropicBlock) -> bytes:
        return b"" if _kind(block) == self._kind else self._open(block)

    def _open(self, block: AnthropicBlock) -> bytes:
        closed = self._close()
        self._index += 1
        self._kind = _kind(block)
        return closed + _event("content_block_start", {"index": self._index, "content_block": block})

    def _close(self) -> bytes:
        kind, self._kind = self._kind, ""
        if not kind:
            return b""
        signed = self._delta("signature", "") if kind == "thinking" else b""
        return signed + _event("content_block_stop", {"index": self._index})

    def _delta(self, kind: str, text: str) -> bytes:
        field = "partial_json" if kind == "input_json" else kind
        return _event("content_block_delta", {"index": self._index, "delta": {"type": f"{kind}_delta", field: text}})


def _kind(block: AnthropicBlock) -> str:
    return str(block.__struct_config__.tag)


def _tool_id() -> str:
    return f"toolu_{uuid.uuid4().hex}"


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind, **fields}) + b"\n\n"
