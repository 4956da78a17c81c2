"""What the engine sends to front ends: news of their requests, and answers to their questions.

reads           each message at once
does not        MAX_UNREAD messages or MAX_UNREAD_SIZE bytes wait (transport.py); at the next message its requests are
                aborted: it may never read again, and they hold KV blocks
reads again     the waiting messages, then the list of its requests and questions that were dropped: their clients get
                an error, and none waits forever

Questions are answered at most once per INTERVAL_S. Writing all metrics takes more than a millisecond, so all who asked
within an interval share one answer, and frequent questions do not slow generation down. A thread makes the answers that
take much longer, one at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import zmq

from octavo.engine.lazy_logprobs import pack_rows
from octavo.engine.llm_engine import LLMEngine
from octavo.observe.logging import LOGGER
from octavo.processes import transport
from octavo.request import Request
from octavo.scheduler.step import SequenceUpdate

#: seconds between retries of a front end that did not read
RETRY_S = 0.1


class Outbox:
    """forget: ends all requests of a front end -> their keys. is_bounded: False for an LLM, which may read when it
    likes: what it has not read are its own outputs."""

    def __init__(
        self, socket: zmq.Socket[bytes], forget: Callable[[bytes], Iterable[int]], *, is_bounded: bool = True
    ) -> None:
        self._most_unread = transport.MAX_UNREAD_SIZE if is_bounded else math.inf
        self._socket = socket
        self._forget = forget
        self._untold: dict[bytes, set[int]] = {}
        self._unread_size: dict[bytes, int] = {}
        self._retry_at = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until `retry` must be called even if nothing happens. None: no limit."""
        return RETRY_S if self._untold else None

    def send(self, front_end: bytes, message: transport.Down) -> None:
        """Never waits."""
        payload = transport.encode(message)
        unread_size = self._unread_size.get(front_end, 0)
        try:
            if unread_size > self._most_unread:
                raise zmq.Again
            self._socket.send_multipart((front_end, payload), zmq.NOBLOCK)
            self._unread_size[front_end] = unread_size + len(payload)
        except zmq.Again:
            self._give_up(front_end, message)
        except zmq.ZMQError as error:
            if keys := list(self._forget(front_end)):
                LOGGER.info("front end %s is gone (%s): %d requests aborted", front_end.decode(), error, len(keys))

    def was_read(self, front_end: bytes, num_bytes: int) -> None:
        """A front end has read num_bytes more."""
        self._unread_size[front_end] = max(0, self._unread_size.get(front_end, 0) - num_bytes)

    def retry(self) -> None:
        """Send front ends that read again the keys of what they missed."""
        if not self._untold or (now := time.monotonic()) < self._retry_at:
            return
        self._retry_at = now + RETRY_S
        for front_end, keys in list(self._untold.items()):
            try:
                self._socket.send_multipart((front_end, transport.encode(transport.GivenUp(sorted(keys)))), zmq.NOBLOCK)
            except zmq.Again:
                continue
            except zmq.ZMQError:
                pass  # it is gone
            del self._untold[front_end]

    def front_end_gone(self, front_end: bytes) -> None:
        self._unread_size.pop(front_end, None)
        self._untold.pop(front_end, None)

    def _give_up(self, front_end: bytes, message: transport.Down) -> None:
        """Drop this message and all later ones."""
        if front_end not in self._untold:
            LOGGER.warning("front end %s does not read: its requests are aborted", front_end.decode())
        untold = self._untold.setdefault(front_end, set())
        match message:
            case transport.StepNews():
                untold.update(message.keys, [news.key for news in message.others])
            case transport.Refusal(key) | transport.Reply(key):
                untold.add(key)
        untold.update(self._forget(front_end))


#: seconds between two answers; the first question after a quiet time is answered at once
INTERVAL_S = 0.05


class Questions:
    """answers: topic -> its answer's function. slow: the same for those that a thread makes. send: takes a front end,
    the question's number, the answer."""

    def __init__(
        self,
        answers: Mapping[str, Callable[[], bytes]],
        slow: Mapping[str, Callable[[], bytes]],
        send: Callable[[bytes, int, bytes], None],
        clock: Callable[[], float],
    ) -> None:
        self._answers = answers
        self._slow = slow
        self._worker = ThreadPoolExecutor(1, "octavo-answers")
        self._made: dict[str, Future[bytes]] = {}  # of slow topics, finished or not
        self._send = send
        self._clock = clock
        self._asked: dict[str, list[tuple[bytes, int]]] = {}
        self._next_at = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until `answer` must be called even if nothing happens. None: no limit."""
        return max(0.0, self._next_at - self._clock()) if self._asked else None

    def ask(self, front_end: bytes, number: int, about: str) -> None:
        self._asked.setdefault(about, []).append((front_end, number))

    def answer(self) -> None:
        """Answer all waiting questions, if the interval is over."""
        if not self._asked or (now := self._clock()) < self._next_at:
            return
        self._next_at = now + INTERVAL_S
        asked, self._asked = self._asked, {}
        for about, askers in asked.items():
            text = self._slow_answer(about) if about in self._slow else self._answers[about]()
            if text is None:
                self._asked[about] = askers
                continue
            for front_end, number in askers:
                self._send(front_end, number, text)

    def _slow_answer(self, about: str) -> bytes | None:
        """None: the thread is not done with it."""
        if about not in self._made:
            self._made[about] = self._worker.submit(self._slow[about])
        return self._made.pop(about).result() if self._made[about].done() else None

    def front_end_gone(self, front_end: bytes) -> None:
        asked = {about: [one for one in askers if one[0] != front_end] for about, askers in self._asked.items()}
        self._asked = {about: askers for about, askers in asked.items() if askers}


@dataclass(slots=True, eq=False)
class Live:
    """An unfinished request in the engine's process. key: its number at its front end. work: as in its AddRequest."""

    front_end: bytes
    key: int
    request: Request
    fingerprint: str
    work: int = 0
    num_announced: int = 0  # the number of its sequences that the front end knows
    num_finished: int = 0


def is_plain(update: SequenceUpdate, live: Live) -> bool:
    """Whether the update is one token and nothing else, and the front end knows all of the request's sequences."""
    sequence = update.sequence
    return (
        sequence.finish_reason is None
        and not update.logprobs
        and len(update.token_ids) == 1
        and not update.prompt_logprobs
        and live.num_announced == len(sequence.request.sequences)
    )


def sequence_news(update: SequenceUpdate, live: Live) -> transport.SequenceNews:
    """The news of an update that is not plain. The front end then knows all of the request's sequences."""
    sequence, request = update.sequence, live.request
    live.num_announced = len(request.sequences)
    return transport.SequenceNews(
        key=live.key,
        index=sequence.index,
        token_ids=update.token_ids,
        num_sequences=live.num_announced,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
        logprobs=list(update.logprobs),
        prompt_logprobs=pack_rows(update.prompt_logprobs),
        num_cached_tokens=request.num_cached_tokens,
        num_preemptions=request.num_preemptions,
        first_scheduled_time=request.first_scheduled_time,
        pooled=update.pooled,
    )


def welcome_of(engine: LLMEngine) -> transport.Welcome:
    """What a front end is told of the engine."""
    started = engine.events.started
    size = started.num_slots if started is not None and started.enable_prefix_caching else 0
    return transport.Welcome(engine.limits, size, transport.pack_params(engine.default_sampling_params), engine.card)
