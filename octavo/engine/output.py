"""From sampled tokens to what the user sees: every request's sequences (sequence_text.py) as RequestOutputs.

Whatever goes wrong while one request's output is made ends that request, with finish_reason "error", and no other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from octavo.engine.lazy_logprobs import LogprobRows, PackedLogprobs
from octavo.engine.sequence_text import Rows, SequenceText, add_row, no_rows
from octavo.observe.logging import LOGGER
from octavo.outputs import (
    CompletionOutput,
    RequestMetrics,
    RequestOutput,
)
from octavo.request import Request, SequenceId
from octavo.sampling_params import RequestOutputKind
from octavo.scheduler.updates import SequenceUpdate
from octavo.text.detokenizer import TextStream
from octavo.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class StopFound:
    """A stop string ended this sequence; the scheduler must be told."""

    sequence_id: SequenceId
    stop: str


@dataclass(frozen=True, slots=True)
class RequestFault:
    """This request's output could not be made, and it has ended; the scheduler must be told."""

    request_id: str
    reason: str


class Processed(NamedTuple):
    """What one step's updates came to: outputs in order of first change, and what the scheduler cannot know."""

    outputs: list[RequestOutput]
    stops: list[StopFound]
    faults: list[RequestFault]


class OutputProcessor:
    """Owner of every live request's text. One caller: the engine's thread."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._requests: dict[str, RequestText] = {}

    def add(self, request: Request) -> None:
        self._requests[request.request_id] = RequestText(request, self._tokenizer)

    def abort(self, request_id: str, now: float) -> list[RequestOutput]:
        """The last output of a request that the scheduler was told to end; none if it has had one."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return []
        request.abort()
        output = request.output(now)
        return [] if output is None else [output]

    def process(self, updates: Iterable[SequenceUpdate], now: float) -> Processed:
        touched: dict[str, RequestText] = {}
        done = Processed([], [], [])
        for update in updates:
            request = self._requests.get(update.sequence.request.request_id)
            if request is None:
                continue  # ended earlier in this very step
            stop = request.extend(update, now)
            if stop is not None:
                done.stops.append(StopFound(update.sequence.sequence_id, stop))
            touched[request.request_id] = request
        for request_id, request in touched.items():
            output = request.output(now)
            if request.fault is not None:
                done.faults.append(RequestFault(request_id, request.fault))
            if request.finished:
                del self._requests[request_id]
            if output is not None:
                done.outputs.append(output)
        return done


class RequestText:
    """One request's sequences as text. Whoever has it may take an output at any time: what a DELTA output holds
    is what came since the last one, however many steps that was.

    No method raises. `fault` says what went wrong, once something has: the request's sequences have all ended then."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None, *, is_lazy: bool = False) -> None:
        """is_lazy: log-probabilities are named as they are read (lazy_logprobs.py), since others wait meanwhile."""
        params = request.sampling_params
        self.request_id = request.request_id
        self.fault: str | None = None
        self._request = request
        self._kind = params.output_kind
        self._tokenizer = tokenizer = tokenizer if params.detokenize else None  # else nothing here is made into text
        stream: TextStream | None = None
        if tokenizer is not None:
            stream = tokenizer.stream(params.skip_special_tokens, request.prompt_token_ids)
        self._sequences = [
            SequenceText(index, request, tokenizer, stream if stream is None or not index else stream.copy(), is_lazy)
            for index in range(params.n)
        ]
        self._prompt_logprobs: Rows | None = None
        if params.prompt_logprobs is not None:
            self._prompt_logprobs = no_rows(is_lazy, params.flat_logprobs, tokenizer)
            self._prompt_logprobs.append(None)
        self._first_token_time: float | None = None

    @property
    def finished(self) -> bool:
        for sequence in self._sequences:  # noqa: SIM110 (a loop, for it is asked once a token)
            if sequence.finish_reason is None:
                return False
        return True

    def extend(self, update: SequenceUpdate, now: float) -> str | None:
        """Take one sequence's update; returns the stop string that ended it, if one did."""
        try:
            if self._prompt_logprobs is not None:
                for row in update.prompt_logprobs:
                    add_row(self._prompt_logprobs, row, self._tokenizer)
            if update.token_ids and self._first_token_time is None:
                self._first_token_time = now
            stop = self._sequences[update.sequence.index].extend(update)
            if update.sequence.finish_reason is not None:
                for unborn in self._sequences[len(self._request.sequences) :]:  # 0 ended before they could fork
                    unborn.end_with(update.sequence)
            return stop
        except Exception as fault:
            self._fail(fault)
            return None

    def extend_prompt(self, packed: list[PackedLogprobs]) -> None:
        """Take log-probabilities of the prompt as the engine's process packs them; of a lazy request's only."""
        if isinstance(self._prompt_logprobs, LogprobRows):
            self._prompt_logprobs.extend(packed)

    def abort(self) -> None:
        try:
            for sequence in self._sequences:
                sequence.abort()
        except Exception as fault:
            self._fail(fault)

    def _fail(self, fault: Exception) -> None:
        LOGGER.exception("request %s failed while its output was made", self.request_id)
        self.fault = f"its output could not be made: {type(fault).__name__}: {fault}"
        for sequence in self._sequences:
            sequence.fail(self.fault)

    def output(self, now: float) -> RequestOutput | None:
        """What there is to hand out now; None: nothing new, or not yet."""
        if self._kind is RequestOutputKind.FINAL_ONLY and not self.finished:
            return None
        try:
            return self._output(now)
        except Exception as fault:
            self._fail(fault)
        request = self._request
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=[
                CompletionOutput(index=index, text="", token_ids=[], finish_reason="error", stop_reason=self.fault)
                for index in range(len(self._sequences))
            ],
            finished=True,
        )

    def _output(self, now: float) -> RequestOutput | None:
        finished = self.finished
        is_delta = self._kind is RequestOutputKind.DELTA
        completions = [sequence.output(is_delta) for sequence in self._sequences if not is_delta or sequence.has_news()]
        if not finished and not any(completion.token_ids or completion.finished() for completion in completions):
            return None
        request = self._request
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=completions,
            finished=finished,
            prompt_logprobs=self._prompt_logprobs,  # type: ignore[arg-type]  # reads like a list
            num_cached_tokens=request.num_cached_tokens,
            metrics=RequestMetrics(
                arrival_time=request.arrival_time,
                first_scheduled_time=request.first_scheduled_time,
                first_token_time=self._first_token_time,
                finished_time=now if finished else None,
                num_preemptions=request.num_preemptions,
            ),
        )
