"""One request's way from a front end's socket to its reader.

A mirror of Request and Sequence is kept here, with what the engine's news say of them, so that text is made by the
same code as in one process (output.py).
"""

from __future__ import annotations

import asyncio

from octavo.engine.output import RequestText
from octavo.errors import OctavoError
from octavo.outputs import RequestOutput
from octavo.processes.transport import SequenceNews
from octavo.request import Request, Sequence, SequenceId
from octavo.scheduler.step import SequenceUpdate
from octavo.text.tokenizer import Tokenizer


class ClientStream:
    """Owner of the mirror and of its text; one reader, in the event loop of who feeds it."""

    __slots__ = ("_fault", "_has_news", "_time", "_waiter", "key", "request", "sequences", "text")

    def __init__(self, key: int, request: Request, tokenizer: Tokenizer | None) -> None:
        self.key = key
        self.request = request
        self.sequences = request.sequences  # filled as the engine tells of them
        self.text = RequestText(request, tokenizer, is_lazy=True)
        self._has_news = False
        self._time = 0.0
        self._fault: OctavoError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def take(self) -> RequestOutput | None:
        """What is new. Raises what ended it, after what came before that."""
        if self._has_news:
            self._has_news = False
            return self.text.output(self._time)
        if self._fault is not None:
            raise self._fault
        return None

    async def wait(self) -> None:
        if not self._has_news and self._fault is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def wake(self, now: float) -> None:
        self._has_news = True
        self._time = now
        self._rouse()

    def fail(self, fault: OctavoError) -> None:
        self._fault = fault
        self._rouse()

    def mirror(self, news: SequenceNews) -> SequenceUpdate:
        """Write the engine's news on this side's request and sequences."""
        request, sequences = self.request, self.sequences
        while len(sequences) < news.num_sequences:
            sequences.append(Sequence(SequenceId(-1), request, len(sequences), []))
        request.num_cached_tokens = news.num_cached_tokens
        request.num_preemptions = news.num_preemptions
        request.first_scheduled_time = news.first_scheduled_time
        sequence = sequences[news.index]
        sequence.finish_reason, sequence.stop_reason = news.finish_reason, news.stop_reason
        self.text.extend_prompt(news.prompt_logprobs)
        return SequenceUpdate(sequence, news.token_ids, news.logprobs)

    def _rouse(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
