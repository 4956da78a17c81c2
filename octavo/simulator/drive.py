"""Drives engines through a trace, and measures them as their clients would.

    trace ──arrivals──▶ fleet.add
                        fleet.begin_steps
                        fleet.end_step ──updates──▶ first tokens, ends; the next turns of conversations
                        fleet.wait_until the next arrival, if it comes before a step ends

The engines may be simulated ones, or a real one that runs by the clock on the wall: the same loop drives both, and so
they can be compared.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from octavo.errors import InvalidRequestError
from octavo.processes.router import Ticket
from octavo.request import Sequence, SequenceState
from octavo.simulator.conversations import Conversations
from octavo.simulator.fleet import Fleet
from octavo.simulator.requests import RequestMaker
from octavo.simulator.trace import TraceRequest


@dataclass(slots=True)
class Outcome:
    """What a run brought. ttfts, tpots, e2els: seconds, by request in the order of their ends; a request with one token
    has no TPOT. gaps, gap_counts: seconds between two steps that brought tokens, and how many tokens the later one
    brought. block_seconds: blocks in use, summed over time and engines. peak_blocks: of one engine. num_cut: answers
    that the context length cut short."""

    ttfts: array[float] = field(default_factory=lambda: array("d"))
    tpots: array[float] = field(default_factory=lambda: array("d"))
    e2els: array[float] = field(default_factory=lambda: array("d"))
    gaps: array[float] = field(default_factory=lambda: array("d"))
    gap_counts: array[int] = field(default_factory=lambda: array("q"))
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_cut: int = 0
    num_refused: int = 0
    refusal: str = ""
    block_seconds: float = 0.0
    peak_blocks: int = 0
    begin: float = 0.0
    end: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first arrival to the last token."""
        return self.end - self.begin


@dataclass(slots=True)
class _Live:
    """A request that was sent and has not ended. ticket: its router's."""

    asked: TraceRequest
    arrival: float
    ticket: Ticket | None
    first: float = 0.0
    num_ended: int = 0


class Driver:
    """Owner of the requests of one run."""

    def __init__(self, fleet: Fleet, maker: RequestMaker) -> None:
        self._fleet = fleet
        self._maker = maker
        self._conversations = Conversations()
        self._live: dict[str, _Live] = {}
        self._awaiting: dict[Sequence, _Live] = {}  # by first sequence: those without a token
        self.outcome = Outcome()

    def run(self, trace: Iterable[TraceRequest]) -> Outcome:
        """To the last token of the last request."""
        fleet, conversations, arrivals = self._fleet, self._conversations, _Arrivals(trace)
        self.outcome.begin = arrivals.time
        while True:
            self._send_due(arrivals)
            fleet.begin_steps()
            next_time = min(arrivals.time, conversations.next_time)
            if next_time < fleet.next_end:
                fleet.wait_until(next_time)
            elif fleet.next_end < math.inf:
                self._end_step()
            else:
                return self.outcome

    def _send_due(self, arrivals: _Arrivals) -> None:
        fleet = self._fleet
        while arrivals.time <= fleet.now:
            at = arrivals.time
            asked = arrivals.take()
            if asked.session is None:
                self._send(asked, at)
            else:
                self._conversations.arrive(asked, at)
        while self._conversations.next_time <= fleet.now:
            at, asked = self._conversations.take()
            self._send(asked, at)

    def _send(self, asked: TraceRequest, at: float) -> None:
        request = self._maker.request(asked, at, self._conversations.history(asked))
        try:
            ticket = self._fleet.add(request)
        except InvalidRequestError as error:
            self.outcome.num_refused += 1
            self.outcome.refusal = self.outcome.refusal or str(error)
            if asked.session is not None:
                self._conversations.ended(asked, self._fleet.now, request.prompt_token_ids)
            return
        self._live[request.request_id] = self._awaiting[request.sequences[0]] = _Live(asked, at, ticket)

    def _end_step(self) -> None:
        outcome = self.outcome
        updates, seconds, gap, num_blocks = self._fleet.end_step()
        outcome.num_steps += 1
        outcome.block_seconds += num_blocks * seconds
        outcome.peak_blocks = max(outcome.peak_blocks, num_blocks)
        if not updates:
            return
        now = outcome.end = self._fleet.now
        if gap is not None:
            outcome.gaps.append(gap)
            outcome.gap_counts.append(len(updates))
        awaiting, finished = self._awaiting, SequenceState.FINISHED
        told = [one.sequence for one in updates if one.sequence.state is finished or one.sequence in awaiting]
        for sequence in told:
            live = awaiting.pop(sequence, None)
            if live is not None:
                live.first = now
                if live.ticket is not None:
                    self._fleet.started(live.ticket)
            if sequence.state is finished:
                self._ended(sequence, now)

    def _ended(self, sequence: Sequence, now: float) -> None:
        """A sequence ended; with the last one its request."""
        request, outcome, num_tokens = sequence.request, self.outcome, sequence.num_output_tokens
        live = self._live[request.request_id]
        live.num_ended += 1
        outcome.num_output_tokens += num_tokens
        outcome.num_cut += num_tokens < live.asked.output_len
        if live.num_ended < live.asked.n:
            return
        del self._live[request.request_id]
        if live.ticket is not None:
            self._fleet.ended(live.ticket, num_tokens)
        outcome.num_prompt_tokens += request.num_prompt_tokens
        outcome.num_cached_tokens += request.num_cached_tokens
        outcome.num_preemptions += request.num_preemptions
        outcome.ttfts.append(live.first - live.arrival)
        outcome.e2els.append(now - live.arrival)
        if num_tokens > 1:
            outcome.tpots.append((now - live.first) / (num_tokens - 1))
        if live.asked.session is not None:
            self._conversations.ended(live.asked, now, sequence.token_ids)


class _Arrivals:
    """A trace, read one request ahead. time: when the next one arrives; inf after the last one. Later turns of a
    conversation that have no time of their own come with the request before them."""

    def __init__(self, trace: Iterable[TraceRequest]) -> None:
        self._trace = iter(trace)
        self.time = 0.0
        self._read()

    def take(self) -> TraceRequest:
        assert self._next is not None, "the trace is over"
        taken = self._next
        self._read()
        return taken

    def _read(self) -> None:
        self._next = next(self._trace, None)
        if self._next is None:
            self.time = math.inf
        elif self._next.arrival is not None:
            self.time = self._next.arrival
