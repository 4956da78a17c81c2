"""A front end's link to the engine's process: the socket, and each request's stream from it to its reader.

Neither sending nor receiving ever blocks. A message wakes the event loop once; after a few milliseconds of receiving,
the loop's other tasks run first.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator

import zmq

from octavo.engine.output import RequestText
from octavo.errors import OctavoError
from octavo.observe.logging import LOGGER
from octavo.outputs import RequestOutput
from octavo.processes.router import Ticket
from octavo.processes.transport import READ_SIZE, Down, HasRead, Hello, SequenceNews, Up, decode_down, encode
from octavo.request import Request, Sequence, SequenceId
from octavo.scheduler.step import SequenceUpdate
from octavo.text.tokenizer import Tokenizer

#: seconds that receiving may take from the event loop at a time
RECEIVE_S = 0.005
#: of sequences that nobody looks for by their ids
_NO_IDS = itertools.repeat(SequenceId(-1))


class EngineLink:
    """Owner of the socket. take: called with each message."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], identity: str, take: Callable[[Down], None]) -> None:
        self._context = context
        self._identity = identity
        self._take = take
        self._socket: zmq.Socket[bytes] | None = None
        self._num_read = 0  # bytes that the engine does not know to be read
        self._goes_on = False  # `_go_on` is scheduled, to receive more

    def connect(self, address: str) -> None:
        """Connect to an engine that listens there."""
        self._num_read = 0
        self._socket = front_end_socket(self._context, address, self._identity.encode())
        asyncio.get_running_loop().add_reader(int(self._socket.FD), self._receive)
        self.send(Hello())

    def disconnect(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(int(self._socket.FD))
            self._socket.close()
            self._socket = None

    def send(self, message: Up) -> None:
        """Never waits. Without an engine it does nothing: who needs an answer gets an error from `disconnect`."""
        if self._socket is None:
            return
        self._socket.send(encode(message), zmq.NOBLOCK)
        # The descriptor signals changes only, and sending may consume one.
        if int(self._socket.EVENTS) & zmq.POLLIN:
            asyncio.get_running_loop().call_soon(self._receive)

    def _receive(self) -> None:
        """Take all messages that have come; after RECEIVE_S let the loop run others first."""
        if self._goes_on:
            return
        until = time.monotonic() + RECEIVE_S
        while self._socket is not None:
            if time.monotonic() > until:
                self._goes_on = True
                asyncio.get_running_loop().call_soon(self._go_on)
                return
            try:
                payload = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._num_read += len(payload)
            if self._num_read >= READ_SIZE:
                self.send(HasRead(self._num_read))
                self._num_read = 0
            try:
                self._take(decode_down(payload))
            except Exception:  # other streams' messages in the socket must still be read
                LOGGER.exception("a message of the engine was not understood")

    def _go_on(self) -> None:
        self._goes_on = False
        self._receive()


def front_end_socket(context: zmq.Context[zmq.Socket[bytes]], address: str, identity: bytes) -> zmq.Socket[bytes]:
    """A socket whose messages neither wait nor get lost while the engine lives."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IDENTITY, identity)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.connect(address)
    return socket


class ClientStream:
    """One request in a front end. It mirrors the engine's Request and Sequences, so text is made by the same code as in
    one process (output.py). One reader, in the event loop that also feeds it. engine: the number of the one that
    computes it. ticket: the router's, if there is one."""

    __slots__ = ("_fault", "_has_news", "_time", "_waiter", "engine", "key", "request", "sequences", "text", "ticket")

    def __init__(
        self,
        key: int,
        request: Request,
        tokenizer: Tokenizer | None,
        engine: int,
        ticket: Ticket | None,
        forks: RequestText | None = None,
    ) -> None:
        self.key = key
        self.engine = engine
        self.ticket = ticket
        self.request = request
        self.sequences = request.sequences  # added as the engine reports them
        self.text = RequestText(request, tokenizer, is_lazy=True) if forks is None else forks.fork(request)
        self._has_news = False
        self._time = 0.0
        self._fault: OctavoError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def take(self) -> RequestOutput | None:
        """The next output, if anything is new. Raises the fault that ended the stream once all outputs are read."""
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
        """Apply the engine's news to the mirrored request and sequences."""
        self.text.extend_prompt(news.prompt_logprobs)
        return mirrored(self.request, news, _NO_IDS)

    def _rouse(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)


def mirrored(request: Request, news: SequenceNews, ids: Iterator[SequenceId]) -> SequenceUpdate:
    """Apply an engine's news to a copy of its request in another process. ids: for sequences that are new there.
    Log-probabilities of the prompt are left out."""
    sequences = request.sequences
    while len(sequences) < news.num_sequences:
        sequences.append(Sequence(next(ids), request, len(sequences), []))
    request.num_cached_tokens = news.num_cached_tokens
    request.num_preemptions = news.num_preemptions
    request.first_scheduled_time = news.first_scheduled_time
    sequence = sequences[news.index]
    sequence.finish_reason, sequence.stop_reason = news.finish_reason, news.stop_reason
    return SequenceUpdate(sequence, news.token_ids, news.logprobs, pooled=news.pooled)
