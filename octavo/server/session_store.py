"""SessionStore: the sessions of one front end, bounded in number and in tokens; idle ones are dropped after a while.

a call ──▶ get ──▶ last use := now       a session without a call for session_timeout seconds is dropped
           add ──▶ refused if too many are kept, or their branches have too many tokens
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from octavo.engine.branches import Branches
from octavo.request import RequestLimits
from octavo.server.api_errors import ApiError
from octavo.server.settings import ServerSettings
from octavo.shown import shown

#: announces so many more tokens; raises ApiError if there is no room for them
Expect = Callable[[int], None]


class RunningCall(Protocol):
    """A call that continues branches, as the routes that fork and prune them meanwhile see it."""

    async def fork(self, n: int, branch: int) -> list[int]: ...

    async def prune(self, branch: int) -> None: ...


@dataclass(slots=True, eq=False, kw_only=True)
class StoredSession:
    """used_at: when its last call began or ended. num_calls: those that generate. calls: the one that each running
    branch has."""

    model: str
    cache_salt: str | None
    branches: Branches
    used_at: float
    num_calls: int = 0
    calls: dict[int, RunningCall] = field(default_factory=dict)
    id: str = field(default_factory=lambda: f"session-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


class SessionStore:
    """One event loop calls it."""

    def __init__(self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._sessions: dict[str, StoredSession] = {}
        self._num_expected = 0  # tokens that running calls may still add

    def add(self, token_ids: Sequence[int], limits: RequestLimits, model: str, cache_salt: str | None) -> StoredSession:
        """Raises ApiError 429 if there is no room."""
        self._drop_idle()
        most = self._settings.max_sessions
        if len(self._sessions) >= most:
            raise _no_room(f"{len(self._sessions)} sessions are open, allowed are {most}", self._settings, "sessions")
        self._admit(len(token_ids))
        branches = Branches(token_ids, limits, self._admit)
        session = StoredSession(model=model, cache_salt=cache_salt, branches=branches, used_at=self._clock())
        self._sessions[session.id] = session
        return session

    def get(self, session_id: str) -> StoredSession:
        """Raises ApiError 404."""
        self._drop_idle()
        session = self._sessions.get(session_id)
        if session is None:
            raise ApiError(
                404,
                f"there is no session {shown(session_id)}: it was deleted, the server was restarted, or it had no call "
                f"for {self._settings.session_timeout:g} s; begin another with POST /v1/sessions",
                param="id",
                code="session_not_found",
            )
        session.used_at = self._clock()
        return session

    def remove(self, session_id: str) -> None:
        """Calls that still generate get their answers."""
        self.get(session_id).branches.close()
        del self._sessions[session_id]

    @contextmanager
    def generating(self, session: StoredSession, num_tokens: int) -> Iterator[Expect]:
        """A call that may add so many tokens; meanwhile the session is not idle. -> announces that it may add more."""
        of_call = 0

        def expect(num_more: int) -> None:
            nonlocal of_call
            self._admit(num_more)
            self._num_expected += num_more
            of_call += num_more

        expect(num_tokens)
        session.num_calls += 1
        try:
            yield expect
        finally:
            self._num_expected -= of_call
            session.num_calls -= 1
            session.used_at = self._clock()

    def _admit(self, num_tokens: int) -> None:
        self._drop_idle()
        most = self._settings.max_session_tokens
        held = self._num_expected + sum(one.branches.num_tokens for one in self._sessions.values())
        if held + num_tokens > most:
            problem = (
                f"the branches of all sessions would have {held + num_tokens} tokens (with those that running calls "
                f"may add), allowed are {most}"
            )
            raise _no_room(problem, self._settings, "session_tokens")

    def _drop_idle(self) -> None:
        oldest = self._clock() - self._settings.session_timeout
        idle = [one for one in self._sessions.values() if not one.num_calls and one.used_at < oldest]
        for session in idle:
            session.branches.close()
            del self._sessions[session.id]


def _no_room(problem: str, settings: ServerSettings, what: str) -> ApiError:
    return ApiError(
        429,
        f"{problem}: prune branches, delete sessions, wait until one had no call for {settings.session_timeout:g} s, "
        f"or start the server with a larger --max-{what.replace('_', '-')}",
        code=f"too_many_{what}",
    )
