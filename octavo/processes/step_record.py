"""The file that says which requests an engine computes, by fingerprint, so that its parent can read it after a death.

With overlapped steps, a step is recorded while the one before it still runs, hence both are in the file. Only changes
are written: while the same sequences decode together, a step costs one comparison.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from octavo.observe.event_log import EventLog
from octavo.observe.events import Event, Finished, Forked, Scheduled, Started

#: characters of a fingerprint (transport.py), and a line's end
_LINE_LEN = 33


class StepRecord:
    """Owns the file and follows the event log. `expect` gives it each request's fingerprint."""

    def __init__(self, path: str, events: EventLog) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._fingerprints: dict[str, str] = {}
        self._requests: dict[int, str] = {}  # of running sequences
        self._steps: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
        self._is_stale = False
        self._num_written = 0
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Started: self._joined,
            Forked: self._joined,
            Finished: self._finished,
            Scheduled: self._scheduled,
        }
        events.listen(self._follow)

    def expect(self, request_id: str, fingerprint: str) -> None:
        """A request is queued in the engine."""
        self._fingerprints[request_id] = fingerprint

    def drop(self, request_id: str) -> None:
        """It has ended, or cannot be the cause of a death."""
        self._fingerprints.pop(request_id, None)
        self._is_stale = True

    def rest(self) -> None:
        """The engine is idle: no request can cause a death now."""
        self._steps = (), ()
        self._write([])

    def close(self) -> None:
        os.close(self._file)

    def _follow(self, event: Event) -> None:
        if (handler := self._handlers.get(type(event))) is not None:
            handler(event)

    def _joined(self, event: Started | Forked) -> None:
        self._requests[event.sequence_id] = event.request_id

    def _finished(self, event: Finished) -> None:
        self._requests.pop(event.sequence_id, None)

    def _scheduled(self, event: Scheduled) -> None:
        steps = self._steps[1], event.sequence_ids
        if steps != self._steps or self._is_stale:
            self._steps, self._is_stale = steps, False
            names = dict.fromkeys(self._requests.get(one, "") for step in steps for one in step)
            known = self._fingerprints
            self._write(list({known[name]: None for name in names if name in known}))

    def _write(self, fingerprints: list[str]) -> None:
        if not fingerprints and not self._num_written:
            return
        lines = "".join([f"{fingerprint}\n" for fingerprint in fingerprints]).encode()
        if len(fingerprints) < self._num_written:
            os.ftruncate(self._file, len(lines))
        os.pwrite(self._file, lines, 0)
        self._num_written = len(fingerprints)


def who_was_computed(path: str) -> list[str]:
    """Read a record and delete it -> its fingerprints; empty if nothing was computed or there is no record."""
    try:
        with open(path, encoding="ascii") as file:
            lines = file.read().splitlines()
        os.unlink(path)
    except OSError:
        return []
    return [line for line in lines if len(line) == _LINE_LEN - 1]
