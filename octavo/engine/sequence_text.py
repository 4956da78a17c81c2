"""One sequence as text, which grows by an incremental detokenizer and ends at a stop string.

While it runs, the last characters that may begin a stop string are held back, so no reader sees text that is later
taken away.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

from octavo.engine.lazy_logprobs import Rows, add_row, no_rows
from octavo.outputs import CompletionOutput, FinishReason
from octavo.request import Request, Sequence
from octavo.scheduler.step import SequenceUpdate
from octavo.text.detokenizer import TextStream
from octavo.text.tokenizer import Tokenizer


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
        self._index, self._lora_request = index, request.lora_request
        self._params = params
        self._tokenizer = tokenizer
        self._stops: tuple[str, ...] = tuple(params.stop or ())
        self._stop_token_ids = request.stop_token_ids
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

    @property
    def token_ids(self) -> list[int]:
        return self._token_ids

    def copy(self) -> SequenceText:
        """A copy that goes on by itself; nothing of it has been handed out."""
        made = copy.copy(self)
        made._stream = None if self._stream is None else self._stream.copy()
        made._token_ids = list(self._token_ids)
        made._logprobs = None if self._logprobs is None else self._logprobs.copy()
        made._handed = _Handed()
        return made

    def _no_rows(self) -> Rows:
        return no_rows(self._is_lazy, self._params.flat_logprobs, self._tokenizer)

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
        include_stop_str_in_output is set; where a grammar ends, there is none."""
        if self._stream is None:
            return None
        if finish_reason == "stop" and not self._params.include_stop_str_in_output and shown:
            shown = shown[: len(shown) - (shown[-1] in self._stop_token_ids)]
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
            lora_request=self._lora_request,
        )
