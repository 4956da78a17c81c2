"""AnswerPieces: what each output of the engine adds to an answer, with the log-probabilities of its text.

    tokens   <th  ink  >  Hm  .  </think>  Yes  .  <tool_call> ...
    text          thought "Hm."            said "Yes."     a call
    rows                                   of two tokens

A token belongs to the text if it wrote some of it. So where log-probabilities are wanted, outputs are read token by
token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from octavo.logprobs import TokenLogprobs
from octavo.outputs import CompletionOutput
from octavo.server.answer_bodies import ChatTokenLogprob
from octavo.server.logprobs import chat_logprobs
from octavo.server.openai_calls import Call
from octavo.server.reading import AnswerEvents, Reading
from octavo.text.answers.events import Event, Said

Rows = list[ChatTokenLogprob]


class AnswerPieces:
    """One answer while it is read. num_logprobs: how many rows there were."""

    def __init__(self, call: Call, reading: Reading | None) -> None:
        """reading: how thoughts and calls are found; None: all text is content."""
        self.num_logprobs = 0
        self._call = call
        self._read = None if reading is None else AnswerEvents(reading)
        self._widths = {} if reading is None else reading.widths
        self._unclear: list[tuple[ChatTokenLogprob, int]] = []  # of tokens that may be part of a mark, and their widths

    @property
    def num_thought_tokens(self) -> int:
        return 0 if self._read is None else self._read.num_thought_tokens

    def add(self, completion: CompletionOutput) -> Iterator[tuple[Event, Rows]]:
        is_end, ids, rows = completion.finish_reason is not None, completion.token_ids, completion.logprobs or []
        if self._read is None:
            if completion.text or rows:
                yield Said(completion.text), self._rows(ids, rows)
        elif self._call.num_top is None:
            for event in self._read.add(completion.text, ids, is_end):
                yield event, []
        else:
            for text, place in self._by_token(completion.text, ids):
                its = slice(place, place + 1)
                widths = [self._widths[one] for one in ids[its]]
                self._unclear += zip(self._rows(ids[its], rows[its]), widths, strict=True)
                for event in self._read.add(text, ids[its], is_end and place >= len(ids) - 1):
                    yield event, self._last_rows(len(event.text)) if isinstance(event, Said) else []
                    self._unclear = []

    def _by_token(self, text: str, token_ids: Sequence[int]) -> Iterator[tuple[str, int]]:
        """The text of each token, and its place; the last has the rest."""
        at = 0
        for place, token_id in enumerate(token_ids[:-1]):
            end = at + self._widths[token_id]
            yield text[at:end], place
            at = end
        yield text[at:], max(len(token_ids) - 1, 0)

    def _last_rows(self, num: int) -> Rows:
        """Of the tokens that wrote the last so many characters."""
        found: Rows = []
        while num > 0 and self._unclear:
            row, width = self._unclear.pop()
            found.append(row)
            num -= width
        return found[::-1]

    def _rows(self, ids: Sequence[int], rows: Sequence[TokenLogprobs]) -> Rows:
        if self._call.num_top is None:
            return []
        self.num_logprobs += len(rows)
        return list(chat_logprobs(self._call, ids, rows))
