"""An answer in Ollama's shape: lines of JSON as they come, of which the last has the counts and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from octavo.outputs import CompletionOutput, RequestOutput
from octavo.server.api_errors import ApiError
from octavo.server.generation import ended_by_server, raise_failure
from octavo.server.reading import AnswerEvents, Reading
from octavo.server.streaming import Events
from octavo.text.answers.events import CallBegun, CallBroken, CallEnded, CallGrown, Said, Thought
from octavo.text.answers.parser import FunctionCall

_encode = msgspec.json.Encoder().encode


def timestamp(seconds: float | None = None) -> str:
    """seconds: since 1970; None for now."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat().replace("+00:00", "Z")


def message_of(text: str, thoughts: str = "", calls: Sequence[FunctionCall] = ()) -> dict[str, Any]:
    """What there is none of is left out."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thoughts:
        message["thinking"] = thoughts
    if calls:
        functions = [{"name": one.name, "arguments": msgspec.json.decode(one.arguments)} for one in calls]
        message["tool_calls"] = [{"function": function} for function in functions]
    return message


@dataclass(slots=True)
class OllamaLines(Events[RequestOutput]):
    """The lines of one streamed answer. reading: None: all of its text is content."""

    model: str
    is_chat: bool
    reading: Reading | None = None
    num_tokens: int = 0
    _events: AnswerEvents | None = None
    _calls: dict[int, FunctionCall] = field(default_factory=dict)  # those that have not ended

    def __post_init__(self) -> None:
        self._events = None if self.reading is None else AnswerEvents(self.reading)

    def output(self, output: RequestOutput) -> bytes:
        raise_failure(output)
        parts = []
        for completion in output.outputs:
            self.num_tokens += len(completion.token_ids)
            if any(read := self._read(completion)):
                parts.append(self._line(*read, {"done": False}))
            if completion.finish_reason is not None:
                parts.append(self._line("", "", [], self._end(completion, output)))
        return b"".join(parts)

    def error(self, error: ApiError) -> bytes:
        return _encode(error.ollama_body()) + b"\n"

    def whole(self, output: RequestOutput) -> bytes:
        completion = output.outputs[0]
        self.num_tokens = len(completion.token_ids)
        return self._line(*self._read(completion), self._end(completion, output)).rstrip(b"\n")

    def _read(self, completion: CompletionOutput) -> tuple[str, str, list[FunctionCall]]:
        """The content, the thoughts and the whole calls that a piece adds."""
        if self._events is None:
            return completion.text, "", []
        is_end = completion.finish_reason is not None
        said, thoughts, made = "", "", []
        for event in self._events.add(completion.text, completion.token_ids, is_end):
            match event:
                case Thought(text):
                    thoughts += text
                case Said(text):
                    said += text
                case CallBegun(index, name):
                    self._calls[index] = FunctionCall(name)
                case CallGrown(index, text):
                    self._calls[index].arguments += text
                case CallEnded(index):
                    made.append(self._calls.pop(index))
                case CallBroken(index):
                    self._calls.pop(index, None)
        return said, thoughts, made

    def _line(self, text: str, thoughts: str, calls: list[FunctionCall], more: dict[str, Any]) -> bytes:
        if self.is_chat:
            said: dict[str, Any] = {"message": message_of(text, thoughts, calls)}
        else:
            said = {"response": text, **({"thinking": thoughts} if thoughts else {})}
        return _encode({"model": self.model, "created_at": timestamp(), **said, **more}) + b"\n"

    def _end(self, completion: CompletionOutput, output: RequestOutput) -> dict[str, Any]:
        if completion.finish_reason not in ("stop", "length"):
            raise ended_by_server()
        times = output.metrics
        assert times is not None, "finished outputs have their times"
        begin, end = times.arrival_time, times.finished_time
        first_step, first_token = times.first_scheduled_time, times.first_token_time
        return {
            "done": True,
            "done_reason": completion.finish_reason,
            "total_duration": _ns(begin, end),
            "load_duration": _ns(begin, first_step),
            "prompt_eval_count": len(output.prompt_token_ids),
            "prompt_eval_duration": _ns(first_step, first_token),
            "eval_count": self.num_tokens,
            "eval_duration": _ns(first_token, end),
        }


def _ns(begin: float | None, end: float | None) -> int:
    """In nanoseconds; 0 if either moment never came."""
    return 0 if begin is None or end is None else round((end - begin) * 1e9)
