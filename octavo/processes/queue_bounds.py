"""Limits how many requests and prompt tokens may wait in a server's engine, and for how long.

An unbounded queue serves nobody: clients at its end have left before their turn. So a server may bound the number, the
prompt tokens and the time of waiting requests, and tells refused clients when to try again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from octavo.engine.core import EngineCore
from octavo.errors import EngineBusyError
from octavo.request import Request
from octavo.server_config import AdmissionConfig

#: seconds; the range of Retry-After
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0
_RATE_WINDOW = 64  # finished requests from which the rate is computed


class AdmissionControl:
    """Counts waiting requests. Owned by the engine's loop."""

    def __init__(
        self, config: AdmissionConfig, core: EngineCore, max_num_seqs: int, clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._core = core
        self._max_num_seqs = max_num_seqs
        self._clock = clock
        self._is_queue_standing = False
        self._unscheduled: deque[Request] = deque()
        self._in_prefill: dict[str, Request] = {}
        self._ends: deque[float] = deque(maxlen=_RATE_WINDOW)

    def check(self, request: Request) -> None:
        """Raises EngineBusyError if too many requests, or too many of their prompts' tokens, wait already."""
        limit = self._config.max_num_queued_reqs
        if limit is not None and (num_queued := self._num_queued()) >= limit and not self._can_start_now():
            raise EngineBusyError(
                f"{num_queued} requests wait already, allowed are max_num_queued_reqs = {limit}; "
                "send the request again later",
                self._retry_after_s(num_queued),
            )
        if (most := self._config.max_num_queued_tokens) is not None and (num := self._num_tokens_left()) >= max(
            most, 1
        ):
            raise EngineBusyError(
                f"{num} prompt tokens wait to be computed already, allowed are max_num_queued_tokens = {most}; "
                "send the request again later",
                self._retry_after_s(len(self._in_prefill)),
            )

    def admitted(self, request: Request) -> None:
        """A request that passed is in the engine."""
        if self._config.queue_timeout is not None:
            self._unscheduled.append(request)
        if self._config.max_num_queued_tokens is not None:
            self._in_prefill[request.request_id] = request

    def left(self, request: Request) -> None:
        """A request ended, or was aborted."""
        self._in_prefill.pop(request.request_id, None)

    def step_done(self) -> None:
        """Requests that still wait had a chance to start, and found no room."""
        self._is_queue_standing = self._core.num_waiting > 0

    def request_ended(self) -> None:
        self._ends.append(self._clock())

    def take_expired(self) -> list[tuple[Request, EngineBusyError]]:
        """Requests that have waited too long for their first step."""
        timeout, queue, expired = self._config.queue_timeout, self._unscheduled, []
        if timeout is None:
            return []
        now = self._clock()
        while queue and (queue[0].first_scheduled_time is not None or now - queue[0].arrival_time > timeout):
            request = queue.popleft()
            if request.first_scheduled_time is None:
                error = EngineBusyError(
                    f"the request waited {now - request.arrival_time:.1f} s for its turn, allowed is queue_timeout = "
                    f"{timeout:g} s; send it again later",
                    self._retry_after_s(self._num_queued()),
                )
                expired.append((request, error))
        return expired

    def _num_tokens_left(self) -> int:
        """Prompt tokens that the engine has yet to compute. Forgets requests that have begun to generate."""
        left = [(one, num) for one in self._in_prefill.values() if (num := _prompt_tokens_left(one))]
        self._in_prefill = {one.request_id: one for one, _ in left}
        return sum(num for _, num in left)

    def _num_queued(self) -> int:
        """Requests that arrived since the last step do not count if the next one has seats for them."""
        num_waiting = self._core.num_waiting
        if self._is_queue_standing:
            return num_waiting
        return max(0, num_waiting - (self._max_num_seqs - self._core.num_running))

    def _can_start_now(self) -> bool:
        """Whether a seat is free, which a request may take even if no queue is allowed."""
        return not self._is_queue_standing and self._core.num_running + self._core.num_waiting < self._max_num_seqs

    def _retry_after_s(self, num_queued: int) -> float:
        """The time until num_queued requests have finished, at the recent rate."""
        if len(self._ends) < 2:
            return MIN_RETRY_S
        rate = (len(self._ends) - 1) / max(self._ends[-1] - self._ends[0], 1e-3)
        return min(max(num_queued / rate, MIN_RETRY_S), MAX_RETRY_S)


def _prompt_tokens_left(request: Request) -> int:
    """All of a prompt until it starts. Samples of it begin where the first one has computed it."""
    if not request.sequences:
        return request.first_len
    return max(0, request.first_len - request.sequences[0].num_computed_tokens)
