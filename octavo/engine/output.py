"""From sampled tokens to what the user sees: a request's sequences as text, and as a RequestOutput.

A sequence's text grows by an incremental detokenizer. While it runs, the last characters that may begin a stop string
are held back, so no reader sees text that is later taken away.
"""

from __future__ import annotations

from typing import NamedTuple

from octavo.engine.lazy_logprobs import LogprobRows, PackedLogprobs, Rows, add_row, no_rows
from octavo.observe.logging import LOGGER
from octavo.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput
from octavo.request import Request, Sequence
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
        self._request = request
        self._kind = params.output_kind
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
        self._first_token_time: float | None = None

    @property
    def finished(self) -> bool:
        for sequence in self._sequences:  # noqa: SIM110 (a loop is faster, and this runs once a token)
            if sequence.finish_reason is None:
                return False
        return True

    @property
    def num_output_tokens(self) -> int:
        """Of its first sequence."""
        return self._sequences[0].num_tokens

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


class _Handed(NamedTuple):
    """How much of a sequence was in earlier DELTA outputs."""

    num_chars: int = 0
    num_tokens: int = 0
    finish: FinishReason | None = None


class SequenceText:
    """One sequence: its tokens, text and log-probabilities so far, and how it ended."""

    def __init__(
        self, index: int, request: Request, tokenizer: Tokenizer | None, stream: TextStream | None, is_lazy: bool
    ) -> None:
        """stream: has read the prompt, and is not shared; None if no text is made."""
        params = request.sampling_params
        self._index = index
        self._params = params
        self._tokenizer = tokenizer
        self._stops: tuple[str, ...] = tuple(params.stop or ())
        self._held_back = 0 if params.include_stop_str_in_output else max(map(len, self._stops), default=1) - 1
        self._stream = stream
        self._text = ""
        self._token_ids: list[int] = []
        self._is_lazy = is_lazy
        self._logprobs: Rows | None = None
        self._cumulative_logprob: float | None = None
        if params.reports_logprobs:
            self._logprobs = self._no_rows()
        if params.reports_logprobs or params.use_beam_search:
            self._cumulative_logprob = 0.0
        self._handed = _Handed()
        self._stop_reason: int | str | None = None
        self.finish_reason: FinishReason | None = None

    def _no_rows(self) -> Rows:
        return no_rows(self._is_lazy, self._params.flat_logprobs, self._tokenizer)

    @property
    def num_tokens(self) -> int:
        return len(self._token_ids)

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
        """End as that sequence did, if it has ended."""
        if self.finish_reason is None:
            self.finish_reason, self._stop_reason = sequence.finish_reason, sequence.stop_reason

    def extend(self, update: SequenceUpdate) -> str | None:
        if self.finish_reason is not None:
            return None
        num_before, token_ids = len(self._token_ids), update.token_ids
        if len(token_ids) > 1 and self._stops:
            stop = self._grow_by_token(token_ids, update.sequence.finish_reason)
        else:
            self._token_ids += token_ids
            stop = self._grow_text(token_ids, update.sequence.finish_reason)
        if update.logprobs and self._cumulative_logprob is not None:
            for row in update.logprobs[: len(self._token_ids) - num_before]:
                if self._logprobs is not None:
                    add_row(self._logprobs, row, self._tokenizer)
                self._cumulative_logprob = (self._cumulative_logprob or 0.0) + row.logprobs[0]
        if stop is not None:
            self.finish_reason, self._stop_reason = "stop", stop
        else:
            self.end_with(update.sequence)
        return stop

    def _grow_by_token(self, token_ids: list[int], finish_reason: FinishReason | None) -> str | None:
        """Add the new tokens up to the one that completes a stop string, as if they had come one by one."""
        last = len(token_ids) - 1
        for index, token_id in enumerate(token_ids):
            self._token_ids.append(token_id)
            stop = self._grow_text([token_id], finish_reason if index == last else None)
            if stop is not None:
                return stop
        return None

    def _grow_text(self, shown: list[int], finish_reason: FinishReason | None) -> str | None:
        """Add the new tokens' text and cut it at the first stop string. A stop token's own text is left out unless
        include_stop_str_in_output is set."""
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
        """The number of characters that no stop string can take back."""
        if self.finish_reason is not None:
            return len(self._text)
        return max(self._handed.num_chars, len(self._text) - self._held_back)

    def output(self, is_delta: bool) -> CompletionOutput:
        visible = self._visible()
        first_char, first_token = (self._handed.num_chars, self._handed.num_tokens) if is_delta else (0, 0)
        logprobs = self._logprobs
        if is_delta and logprobs is not None:
            self._logprobs = self._no_rows()  # rows that were handed out are not kept
        elif logprobs is not None:
            logprobs = logprobs.copy()
        if is_delta:
            self._handed = _Handed(visible, len(self._token_ids), self.finish_reason)
        return CompletionOutput(
            index=self._index,
            text=self._text[first_char:visible],
            token_ids=self._token_ids[first_token:],
            cumulative_logprob=self._cumulative_logprob,
            logprobs=logprobs,  # type: ignore[arg-type]  # reads like a list
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )
