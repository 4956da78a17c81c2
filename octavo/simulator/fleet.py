"""A fleet: engines with clocks of their own, in the order of what happens to them, behind one router.

    engine 0   ├── step ──┤├──── step ────┤          a step is carried out when it begins, and told when it ends
    engine 1        ├──────── step ────────┤
    engine 2   idle            ├─ step ─┤            its clock waits until a request comes for it
                            ▲
                           now: no engine has told anything later, so the router knows what a front end would know

One engine alone has no router.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

from octavo.errors import InvalidRequestError
from octavo.processes.router import Router, Ticket, prompt_pieces
from octavo.request import Request
from octavo.scheduler.step import SequenceUpdate


class DrivenEngine(Protocol):
    """now: seconds since the trace began."""

    @property
    def now(self) -> float: ...

    @property
    def has_unfinished(self) -> bool: ...

    @property
    def num_used_blocks(self) -> int: ...

    def add(self, request: Request) -> None: ...

    def step(self) -> list[SequenceUpdate]: ...

    def wait_until(self, time: float) -> None: ...


class DoneStep(NamedTuple):
    """A step of one engine. gap: seconds since its step before that brought tokens; None: it has rested since, or this
    one brought none."""

    updates: list[SequenceUpdate]
    seconds: float
    gap: float | None
    num_blocks: int


class Fleet:
    """Owner of the engines' order in time, and of what the router is told. router: knows the engines as up; needed for
    several. now: seconds since the trace began, for all of them."""

    def __init__(self, engines: Sequence[DrivenEngine], router: Router | None = None) -> None:
        assert router is not None or len(engines) == 1, "several engines need a router"
        self._engines = engines
        self._router = router
        self.now = 0.0
        self._ready: list[int] = []  # engines that begin a step now
        self._ends: list[tuple[float, int]] = []  # a heap of steps that have begun: end, engine
        self._begun: list[DoneStep | None] = [None] * len(engines)
        self._is_awake = [False] * len(engines)
        self._token_times: list[float | None] = [None] * len(engines)  # of the last tokens, if it has not rested since

    def add(self, request: Request) -> Ticket | None:
        """A request arrives now -> the router's ticket. Raises InvalidRequestError if it could never finish."""
        if self._router is None:
            self._add_to(0, request)
            return None
        ticket = self._router.choose(prompt_pieces(request), request)
        assert ticket is not None, "all engines are up"
        try:
            self._add_to(ticket.engine, request)
        except InvalidRequestError:
            self._router.ended(ticket)
            raise
        return ticket

    def started(self, ticket: Ticket) -> None:
        """A request's prompt is computed."""
        assert self._router is not None, "only a router gives tickets"
        self._router.started(ticket)

    def ended(self, ticket: Ticket, num_output_tokens: int) -> None:
        assert self._router is not None, "only a router gives tickets"
        self._router.ended(ticket, num_output_tokens)

    def begin_steps(self) -> None:
        """Let engines that have requests and no step begin one, after all that arrives now has been added."""
        for index in self._ready:
            self._begun[index] = self._carry_out(index)
            heappush(self._ends, (self._engines[index].now, index))
        self._ready.clear()

    @property
    def next_end(self) -> float:
        """When the next step ends that has begun; inf: none has."""
        return self._ends[0][0] if self._ends else math.inf

    def end_step(self) -> DoneStep:
        """Let time pass until then."""
        self.now, index = heappop(self._ends)
        done = self._begun[index]
        assert done is not None, "it has begun"
        self._begun[index] = None
        if self._engines[index].has_unfinished:
            self._ready.append(index)
        else:
            self._is_awake[index] = False
        return done

    def wait_until(self, time: float) -> None:
        """Let time pass in which no step ends."""
        self.now = max(self.now, time)

    def _add_to(self, index: int, request: Request) -> None:
        engine = self._engines[index]
        if self._is_awake[index]:
            engine.add(request)
            return
        has_rested = engine.now < self.now
        engine.wait_until(self.now)
        self.now = max(self.now, engine.now)  # a real engine's clock goes on by itself
        engine.add(request)
        self._is_awake[index] = True
        self._ready.append(index)
        if has_rested:
            self._token_times[index] = None

    def _carry_out(self, index: int) -> DoneStep:
        engine, gap = self._engines[index], None
        begin = engine.now
        updates = engine.step()
        end = engine.now
        if updates:
            last, self._token_times[index] = self._token_times[index], end
            gap = end - last if last is not None else None
        return DoneStep(updates, end - begin, gap, engine.num_used_blocks)
