"""From sampled tokens to what the user sees: a request's sequences as text, and as a RequestOutput."""

from __future__ import annotations

import copy

from octavo.engine.lazy_logprobs import LogprobRows, PackedLogprobs, Rows, add_row, no_rows
from octavo.engine.sequence_text import SequenceText
from octavo.errors import InvalidRequestError
from octavo.observe.logging import LOGGER
from octavo.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput
from octavo.request import Request
from octavo.sampling_params import RequestOutputKind
from octavo.scheduler.step import SequenceUpdate
from octavo.text.detokenizer import TextStream
from octavo.text.tokenizer import Tokenizer


class RequestText:
    """One request's sequences as text. An output may be taken at any time: a DELTA output holds all that came since the
    last one, however many steps that was.

    No method raises. `fault` says what went wrong; then all of the request's sequences have ended."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None, *, is_lazy: bool = False) -> None:
        """is_lazy: tokens of log-probabilities are decoded only when they are read (lazy_logprobs.py)."""
        params = request.sampling_params
        self.request_id = request.request_id
        self.fault: str | None = None
        self.engine: int | None = None  # of several, the one whose cache has a snapshot's blocks
        self._request = request
        self._kind = params.output_kind
        self._interval = params.stream_interval or 1
        self._is_lazy = is_lazy
        self._tokenizer = tokenizer = tokenizer if params.detokenize else None
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
        self._told: list[tuple[int, FinishReason | None]] = [(0, None)] * params.n  # tokens and ends in outputs so far
        self._first_token_time: float | None = None
        self._pooled: bytes | None = None

    @property
    def finished(self) -> bool:
        for sequence in self._sequences:  # noqa: SIM110 (a loop is faster, and this runs once a token)
            if sequence.finish_reason is None:
                return False
        return True

    @property
    def num_output_tokens(self) -> int:
        """Of its first sequence."""
        return len(self._sequences[0].token_ids)

    def snapshot(self) -> RequestText:
        """As it is now, for requests that fork from this one: it may go on, or end, before they begin. Raises
        InvalidRequestError if nothing can fork from it."""
        params = self._request.sampling_params
        if params.num_sequences > 1:
            raise InvalidRequestError("a beam search cannot be forked while it runs: wait until it has ended")
        if params.reports_logprobs and self._kind is RequestOutputKind.DELTA:
            raise InvalidRequestError(
                "log-probabilities that a stream has given out are not kept, so it cannot be forked while it runs: "
                "fork it before or after, leave logprobs out, or use output_kind CUMULATIVE"
            )
        made = copy.copy(self)
        made._sequences = [one.copy() for one in self._sequences]
        made._prompt_logprobs = None if self._prompt_logprobs is None else self._prompt_logprobs.copy()
        made._told = [(0, None)] * params.n
        made._first_token_time = None
        return made

    def fork(self, request: Request) -> RequestText:
        """That of a new request with the same prompt, which begins with the tokens of this snapshot. Its first output
        holds them, too."""
        token_ids = self._sequences[0].token_ids
        if not token_ids:
            return RequestText(request, self._tokenizer, is_lazy=self._is_lazy)
        made = self.snapshot()
        request.begin_with(tuple(token_ids))
        if request.sampling_params.prompt_logprobs is not None:  # the snapshot has them
            request.sampling_params = request.sampling_params.replace(prompt_logprobs=None)
        made.request_id, made._request = request.request_id, request
        return made

    def extend(self, update: SequenceUpdate, now: float) -> str | None:
        """Add one sequence's update -> the stop string that ended it, if one did."""
        try:
            if self._prompt_logprobs is not None:
                for row in update.prompt_logprobs:
                    add_row(self._prompt_logprobs, row, self._tokenizer)
            if update.token_ids and self._first_token_time is None:
                self._first_token_time = now
            stop = self._sequences[update.sequence.index].extend(update)
            if update.sequence.finish_reason is not None:
                self._pooled = update.pooled
                for unforked in self._sequences[len(self._request.sequences) :]:  # 0 ended before they forked
                    unforked.end_with(update.sequence)
            return stop
        except Exception as fault:
            self._fail(fault)
            return None

    def extend_prompt(self, packed: list[PackedLogprobs]) -> None:
        """Add log-probabilities of the prompt, packed by the engine's process. Only for lazy requests."""
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
        """The output to hand out now. None: nothing is new, or it is not time yet."""
        if self._kind is RequestOutputKind.FINAL_ONLY and not self.finished:
            return None
        if self._interval > 1 and not self._is_due():
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
            lora_request=request.lora_request,
        )

    def _is_due(self) -> bool:
        """Whether a sequence has its first tokens, stream_interval new ones, or an end, since the last output."""
        for sequence, (num_told, end) in zip(self._sequences, self._told, strict=True):
            num_new = len(sequence.token_ids) - num_told
            if sequence.finish_reason != end or (num_new and (not num_told or num_new >= self._interval)):
                self._told = [(len(one.token_ids), one.finish_reason) for one in self._sequences]
                return True
        return False

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
            pooled=self._pooled,
            lora_request=request.lora_request,
        )
