"""Streamed answers, collected by prompt and written in the order of the prompts.

The first unfinished answer is shown live; the text of later ones waits for its turn. The output reads as if the prompts
had been answered one by one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from octavo.cli.run_requests import RunRequest
from octavo.cli.sampling_flags import REPEATED
from octavo.outputs import RequestOutput
from octavo.shown import cut

TITLE_LEN = 100


@dataclass(slots=True)
class Sample:
    """One sequence of an answer."""

    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(slots=True)
class Answer:
    """All samples of one prompt."""

    request: RunRequest
    samples: list[Sample]
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    is_finished: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(len(sample.token_ids) for sample in self.samples)

    def extend(self, output: RequestOutput) -> None:
        self.num_prompt_tokens = len(output.prompt_token_ids)
        self.num_cached_tokens = output.num_cached_tokens
        self.is_finished = output.finished
        for completion in output.outputs:
            sample = self.samples[completion.index]
            sample.pieces.append(completion.text)
            sample.token_ids += completion.token_ids
            sample.finish_reason = completion.finish_reason
            sample.stop_reason = completion.stop_reason

    def record(self, index: int) -> dict[str, Any]:
        """The JSONL line."""
        return {
            "index": index,
            **self.request.given,
            "outputs": [
                {
                    "index": number,
                    "text": sample.text,
                    "finish_reason": sample.finish_reason,
                    "stop_reason": sample.stop_reason,
                    "num_tokens": len(sample.token_ids),
                }
                for number, sample in enumerate(self.samples)
            ],
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_cached_tokens": self.num_cached_tokens,
        }


def gather(requests: list[RunRequest], outputs: Iterable[RequestOutput]) -> Iterator[tuple[int, Answer]]:
    """Follow a stream of DELTA or FINAL_ONLY outputs; yield a prompt's index and answer whenever the answer changes."""
    answers = [Answer(request, [Sample() for _ in range(request.sampling_params.n)]) for request in requests]
    for output in outputs:
        index = int(output.request_id.rpartition("-")[2])
        answers[index].extend(output)
        yield index, answers[index]


class Shown(Protocol):
    """A stream that text is written to."""

    def write(self, text: str, /) -> Any: ...

    def flush(self) -> Any: ...


class LiveText:
    """Writes answers as text, in order, each piece as early as the order allows."""

    def __init__(self, file: Shown, num_requests: int) -> None:
        self._file = file
        self._num_requests = num_requests
        self._waiting: dict[int, Answer] = {}
        self._turn = 0
        self._sample = 0
        self._num_shown = 0  # pieces already written of the current sample
        self._is_begun = False

    def update(self, index: int, answer: Answer) -> None:
        self._waiting[index] = answer
        while self._turn in self._waiting and self._show(self._waiting[self._turn]):
            del self._waiting[self._turn]
            self._turn += 1
        self._file.flush()

    def _show(self, answer: Answer) -> bool:
        """Write the new part of the current answer; True once the answer is complete."""
        if not self._is_begun:
            self._is_begun = True
            self._write_title(answer)
        while self._sample < len(answer.samples):
            sample = answer.samples[self._sample]
            if self._num_shown == 0 and sample.pieces and len(answer.samples) > 1:
                self._file.write(f"[{self._sample + 1}] ")
            self._file.write("".join(sample.pieces[self._num_shown :]))
            self._num_shown = len(sample.pieces)
            if sample.finish_reason is None:
                return False
            if not sample.text.endswith("\n"):
                self._file.write("\n")
            self._sample, self._num_shown = self._sample + 1, 0
        self._sample, self._is_begun = 0, False
        return True

    def _write_title(self, answer: Answer) -> None:
        if self._num_requests > 1:
            self._file.write(("\n" if self._turn else "") + f"> {cut(answer.request.title, TITLE_LEN)}\n")


class JsonLines:
    """Writes finished answers as JSON lines, in order."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._finished: dict[int, Answer] = {}
        self._turn = 0

    def update(self, index: int, answer: Answer) -> None:
        if answer.is_finished:
            self._finished[index] = answer
        while self._turn in self._finished:
            record = self._finished.pop(self._turn).record(self._turn)
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
            self._turn += 1


def cut_at(num_tokens: int, max_tokens: int | None) -> str:
    """Why an answer ended with "length", and what to change."""
    tokens = f"{num_tokens:,} token{'' if num_tokens == 1 else 's'}"
    if max_tokens is not None and num_tokens >= max_tokens:
        return f"cut at {tokens}; --max-tokens allows more"
    return f"cut after {tokens}, where the context is full; --max-model-len may make it longer"


class Cuts:
    """Reports truncated answers on standard error: the text itself does not show it."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], str] = {}

    def note(self, index: int, answer: Answer) -> None:
        for number, sample in enumerate(answer.samples):
            if sample.finish_reason == "repetition":
                self._found[index, number] = REPEATED
            elif sample.finish_reason == "length":
                most = answer.request.sampling_params.max_tokens
                self._found[index, number] = cut_at(len(sample.token_ids), most)

    def tell(self, num_answers: int) -> None:
        if not self._found:
            return
        first = self._found[min(self._found)]
        which = "the answer was" if num_answers == 1 else f"{len(self._found):,} of {num_answers:,} answers were"
        print(f"octavo: {which} {first}", file=sys.stderr)
