"""Ranks: the processes of a model's workers, and what their answers to one message mean together.

all answer                      the first rank's answer counts
all fail in the same way        that fault: a step that cannot be computed
one fails, ends or is silent    the engine ends: the others wait for that one
"""

from __future__ import annotations

import select
import time
from typing import Any

from octavo import env
from octavo.distributed.world import CollectiveError
from octavo.errors import EngineDeadError, reason_of
from octavo.executor.packing import packed
from octavo.executor.remote import PATIENCE_S, Remote

GRACE_S = 5.0  # how long the others may take once a rank has failed, or has waited for them in vain


class Ranks:
    """All workers of a model."""

    def __init__(self) -> None:
        self.remotes: list[Remote] = []
        self._by_descriptor: dict[int, Remote] = {}
        self._died: str | None = None

    def add(self, remote: Remote) -> None:
        self.remotes.append(remote)
        self._by_descriptor[remote.connection.fileno()] = remote

    def send(self, message: Any) -> None:
        """To all ranks. Raises EngineDeadError once one of them is gone."""
        self._check_alive()
        data = packed(message)
        for remote in self.remotes:
            try:
                remote.send(data)
            except EngineDeadError as gone:
                raise self._end(str(gone)) from None

    def answers(self, limit: float | None) -> list[Any]:
        """Each rank's next message, once all have sent theirs. Raises an exception that they all sent, or what ended
        one of them. limit: seconds that they may take."""
        self._check_alive()
        if len(self.remotes) == 1:
            return [self._one_answer()]
        answers: dict[int, Any] = {}
        poll = select.poll()
        for descriptor in self._by_descriptor:
            poll.register(descriptor, select.POLLIN)
        while len(answers) < len(self.remotes):
            has_fault = any(isinstance(answer, BaseException) for answer in answers.values())
            seconds = GRACE_S if has_fault else limit
            ready = poll.poll(None if seconds is None else seconds * 1000)
            if not ready:
                break
            for descriptor, _ in ready:
                self._take(self._by_descriptor[descriptor], poll, answers)
        return self._checked(answers, is_start=limit is None)

    def close(self) -> None:
        for remote in self.remotes:
            remote.connection.close()
        until = time.monotonic() + PATIENCE_S
        for remote in self.remotes:
            remote.process.reap(max(until - time.monotonic(), 0.0))
        self.remotes, self._by_descriptor = [], {}

    def _take(self, remote: Remote, poll: select.poll, answers: dict[int, Any]) -> None:
        """A message that has arrived."""
        try:
            said = remote.receive()
        except EngineDeadError as gone:
            if not isinstance(answers.get(remote.rank), BaseException):
                raise self._end(str(gone)) from None
            poll.unregister(remote.connection.fileno())  # it has said why
            return
        if said is not None:
            answers[remote.rank] = said

    def _one_answer(self) -> Any:
        try:
            while (said := self.remotes[0].receive()) is None:
                pass
        except EngineDeadError as gone:
            raise self._end(str(gone)) from None
        if isinstance(said, BaseException):
            raise said
        return said

    def _checked(self, answers: dict[int, Any], *, is_start: bool) -> list[Any]:
        faults = {rank: answer for rank, answer in sorted(answers.items()) if isinstance(answer, BaseException)}
        own = {rank: fault for rank, fault in faults.items() if not isinstance(fault, CollectiveError)}
        if not faults and len(answers) == len(self.remotes):
            return [answers[remote.rank] for remote in self.remotes]
        if own and is_start:
            raise next(iter(own.values()))
        if len(own) == len(self.remotes) and len({(type(fault), str(fault)) for fault in own.values()}) == 1:
            raise own[0]
        raise self._end(self._reason(answers, faults, own))

    def _reason(self, answers: dict[int, Any], faults: dict[int, BaseException], own: dict[int, BaseException]) -> str:
        """What ends the engine: a rank's fault in which the others have no part, or that a rank is silent."""
        if own:
            rank, fault = next(iter(own.items()))
            return f"{self.remotes[rank].name} failed in a step of all ranks: {reason_of(fault)}"
        silent = [remote for remote in self.remotes if remote.rank not in answers]
        stopped = [remote for remote in silent if remote.process.is_stopped()]
        if not silent:
            return str(next(iter(faults.values())))
        names = " and ".join(remote.name for remote in stopped or silent)
        why = "a signal has stopped it" if stopped else "it hangs"
        waited = env.collective_timeout()
        return (
            f"the process of {names} gave no answer for {waited:g} s: {why}, and was killed; if a step may take "
            "longer, set OCTAVO_COLLECTIVE_TIMEOUT higher"
        )

    def _check_alive(self) -> None:
        if self._died is not None:
            raise EngineDeadError(self._died)

    def _end(self, why: str) -> EngineDeadError:
        """Kill all ranks: one alone would wait for the others."""
        self._died = why
        if len(self.remotes) > 1:
            for remote in self.remotes:
                remote.process.kill()
        return EngineDeadError(why)
