"""From sampled tokens to what the user sees: text, stop strings, logprobs, RequestOutputs.

A sequence's text grows by an incremental detokeniser. While it runs, the last characters that could be the
beginning of a stop string are held back, so that no reader ever sees text that is later taken away.

Whatever goes wrong while one request's output is made ends that request, with finish_reason "error", and no other.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from octavo.engine.detokenizer import TextStream
from octavo.engine.tokenizer import Tokenizer
from octavo.messages import LogprobRow
from octavo.observe.logging import LOGGER
from octavo.outputs import (
    CompletionOutput,
    FinishReason,
    FlatLogprobs,
    Logprob,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
)
from octavo.request import Request, Sequence, SequenceId
from octavo.sampling_params import RequestOutputKind
from octavo.scheduler.scheduler import SequenceUpdate


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

    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        params = request.sampling_params
        self.request_id = request.request_id
        self.fault: str | None = None
        self._request = request
        self._kind = params.output_kind
        self._tokenizer = tokenizer
        self._sequences = [_SequenceText(index, request, tokenizer) for index in range(params.n)]
        self._prompt_logprobs: list[TokenLogprobs | None] | FlatLogprobs | None = None
        if params.prompt_logprobs is not None:
            self._prompt_logprobs = FlatLogprobs() if params.flat_logprobs else []
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
            return self._extend(update, now)
        except Exception as fault:
            self._fail(fault)
            return None

    def _extend(self, update: SequenceUpdate, now: float) -> str | None:
        if self._prompt_logprobs is not None:
            for row in update.prompt_logprobs:
                _add(row, self._prompt_logprobs, self._tokenizer)
        if update.token_ids and self._first_token_time is None:
            self._first_token_time = now
        stop = self._sequences[update.sequence.index].extend(update)
        if update.sequence.finish_reason is not None:
            for unborn in self._sequences[len(self._request.sequences) :]:  # sequence 0 ended before they could fork
                unborn.end_with(update.sequence)
        return stop

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
        if self._kind is RequestOutputKind.FINAL_ONLY and not finished:
            return None
        is_delta = self._kind is RequestOutputKind.DELTA
        completions = [sequence.output(is_delta) for sequence in self._sequences if not is_delta or sequence.has_news()]
        if not finished and not any(completion.token_ids or completion.finished for completion in completions):
            return None
        request = self._request
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=completions,
            finished=finished,
            prompt_logprobs=self._prompt_logprobs,
            num_cached_tokens=request.num_cached_tokens,
            metrics=RequestMetrics(
                arrival_time=request.arrival_time,
                first_scheduled_time=request.first_scheduled_time,
                first_token_time=self._first_token_time,
                finished_time=now if finished else None,
                num_preemptions=request.num_preemptions,
            ),
        )


class _Handed(NamedTuple):
    """How much of a sequence earlier DELTA outputs have handed out."""

    num_chars: int = 0
    num_tokens: int = 0
    finish: FinishReason | None = None


class _SequenceText:
    """One sequence: tokens, text and logprobs so far, and how it ended."""

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer | None) -> None:
        params = request.sampling_params
        self._index = index
        self._params = params
        self._tokenizer = tokenizer
        self._stops: tuple[str, ...] = tuple(params.stop or ())
        self._held_back = 0 if params.include_stop_str_in_output else max(map(len, self._stops), default=1) - 1
        self._stream: TextStream | None = None
        if tokenizer is not None and params.detokenize:
            self._stream = tokenizer.stream(params.skip_special_tokens)
        self._text = ""
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] | FlatLogprobs | None = None
        self._cumulative_logprob: float | None = None
        if params.reports_logprobs:
            self._logprobs = FlatLogprobs() if params.flat_logprobs else []
            self._cumulative_logprob = 0.0
        self._handed = _Handed()
        self._stop_reason: int | str | None = None
        self.finish_reason: FinishReason | None = None

    def has_news(self) -> bool:
        """Whether a DELTA output should mention this sequence."""
        return self._handed != (self._visible(), len(self._token_ids), self.finish_reason)

    def abort(self) -> None:
        if self.finish_reason is None:
            self._text += self._stream.finish() if self._stream is not None else ""
            self.finish_reason = "abort"

    def fail(self, reason: str) -> None:
        if self.finish_reason is None:
            self.finish_reason, self._stop_reason = "error", reason

    def end_with(self, sequence: Sequence) -> None:
        """End as that sequence did, if it did."""
        if self.finish_reason is None:
            self.finish_reason, self._stop_reason = sequence.finish_reason, sequence.stop_reason

    def extend(self, update: SequenceUpdate) -> str | None:
        if self.finish_reason is not None:
            return None
        if update.logprobs is not None and self._logprobs is not None:
            _add(update.logprobs, self._logprobs, self._tokenizer)
            self._cumulative_logprob = (self._cumulative_logprob or 0.0) + update.logprobs.logprobs[0]
        self._token_ids += update.token_ids
        stop = self._grow_text(update.token_ids, update.sequence.finish_reason)
        if stop is not None:
            self.finish_reason, self._stop_reason = "stop", stop
        else:
            self.end_with(update.sequence)
        return stop

    def _grow_text(self, shown: list[int], finish_reason: FinishReason | None) -> str | None:
        """Add the new tokens' text; cut at the first stop string. A stop token's own text is left out unless
        include_stop_str_in_output."""
        if self._stream is None:
            return None
        if finish_reason == "stop" and not self._params.include_stop_str_in_output:
            shown = shown[:-1]
        old_len = len(self._text)
        for token_id in shown:
            self._text += self._stream.push(token_id)
        if finish_reason is not None:
            self._text += self._stream.finish()
        if len(self._token_ids) <= self._params.min_tokens:
            return None
        return self._cut_at_stop(old_len)

    def _cut_at_stop(self, old_len: int) -> str | None:
        """Find the earliest stop string that ends in the new text."""
        best: tuple[int, str] | None = None
        for stop in self._stops:
            start = self._text.find(stop, max(0, old_len - len(stop) + 1))
            if start >= 0 and (best is None or start < best[0]):
                best = (start, stop)
        if best is None:
            return None
        start, stop = best
        self._text = self._text[: start + (len(stop) if self._params.include_stop_str_in_output else 0)]
        return stop

    def _visible(self) -> int:
        """Characters that no stop string can take back any more."""
        if self.finish_reason is not None:
            return len(self._text)
        return max(self._handed.num_chars, len(self._text) - self._held_back)

    def output(self, is_delta: bool) -> CompletionOutput:
        visible = self._visible()
        first_char, first_token = (self._handed.num_chars, self._handed.num_tokens) if is_delta else (0, 0)
        logprobs = None if self._logprobs is None else self._logprobs[first_token:]
        if is_delta:
            self._handed = _Handed(visible, len(self._token_ids), self.finish_reason)
        return CompletionOutput(
            index=self._index,
            text=self._text[first_char:visible],
            token_ids=self._token_ids[first_token:],
            cumulative_logprob=self._cumulative_logprob,
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )


def _add(row: LogprobRow, rows: MutableSequence[Any] | FlatLogprobs, tokenizer: Tokenizer | None) -> None:
    if not isinstance(rows, FlatLogprobs):
        rows.append(_named(row, tokenizer))
        return
    texts: list[str | None] = [None] * len(row.token_ids)
    if tokenizer is not None:
        texts = [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in row.token_ids]
    rows.append_fast(row.token_ids, row.logprobs, _ranks(row), texts)


def _ranks(row: LogprobRow) -> list[int]:
    """The best alternatives' ranks are their order, 1 = best."""
    return [row.rank, *range(1, len(row.token_ids) - len(row.asked_ranks)), *row.asked_ranks]


def _named(row: LogprobRow, tokenizer: Tokenizer | None) -> TokenLogprobs:
    """Logprobs by token id, the chosen token first."""
    named: TokenLogprobs = {}
    ranks = _ranks(row)
    for token_id, logprob, rank in zip(row.token_ids, row.logprobs, ranks, strict=True):
        if token_id not in named:
            text = None if tokenizer is None else tokenizer.decode([token_id], skip_special_tokens=False)
            named[token_id] = Logprob(logprob, rank, text)
    return named
