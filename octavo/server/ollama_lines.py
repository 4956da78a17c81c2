"""An answer in Ollama's shape: lines of JSON as they come, of which the last has the counts and times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from octavo.outputs import CompletionOutput, RequestOutput
from octavo.server.api_errors import ApiError
from octavo.server.generation import ended_by_server, raise_failure

_encode = msgspec.json.Encoder().encode


def timestamp(seconds: float | None = None) -> str:
    """seconds: since 1970; None for now."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat().replace("+00:00", "Z")


def message_of(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@dataclass(slots=True)
class OllamaLines:
    """The lines of one streamed answer; see streaming.Events."""

    model: str
    is_chat: bool
    num_tokens: int = 0

    def output(self, output: RequestOutput) -> bytes:
        raise_failure(output)
        parts = []
        for completion in output.outputs:
            self.num_tokens += len(completion.token_ids)
            if completion.text:
                parts.append(self._line(completion.text, {"done": False}))
            if completion.finish_reason is not None:
                parts.append(self._line("", self._end(completion, output)))
        return b"".join(parts)

    def is_large(self, output: RequestOutput) -> bool:
        return False

    def end(self) -> bytes:
        return b""

    def error(self, error: ApiError) -> bytes:
        return _encode(error.ollama_body()) + b"\n"

    def whole(self, output: RequestOutput) -> bytes:
        completion = output.outputs[0]
        self.num_tokens = len(completion.token_ids)
        return self._line(completion.text, self._end(completion, output)).rstrip(b"\n")

    def _line(self, text: str, more: dict[str, Any]) -> bytes:
        said = {"message": message_of(text)} if self.is_chat else {"response": text}
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
