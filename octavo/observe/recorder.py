"""The flight recorder: an engine's events in a file as they happen, and the last ones after a fault or on request.

    engine ──event──▶ EventLog ──▶ ring in memory ──────────────────────▶ dump(); after a fault, a file
                          └──────▶ queue ──▶ the recorder's thread ─────▶ record=FILE

The engine's thread only appends to the queue. If the disk is slower than the engine, events are lost and counted.
"""

from __future__ import annotations

import atexit
import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from msgspec.structs import replace

from octavo.errors import ConfigError, EngineDeadError, LogError
from octavo.observe.event_log import EventLog
from octavo.observe.events import Arrived, Event, EventsLost, Sampled
from octavo.observe.flight_log import LogHeader, LogWriter, read_log
from octavo.observe.logging import LOGGER
from octavo.observe.machine import installed_version

#: seconds that the recorder's thread gathers events before it writes them
PATIENCE_S = 0.2
#: the most events that wait for the disk
MAX_WAITING = 200_000
#: files of faults that are kept
NUM_FAULTS_KEPT = 10

_PREFIX, _SUFFIX = "fault-", ".olog"
_SLICE = 256  # events that are packed at a time, about 0.3 ms
_PAUSE_S = 0.001  # between two slices, for the engine's thread


class FlightRecorder:
    """Describes the log of one engine, and writes it. config: the engine's options, by section. fault_folder: where
    files of faults go."""

    def __init__(
        self,
        log: EventLog,
        config: Mapping[str, Mapping[str, Any]],
        clock: Callable[[], float],
        fault_folder: Callable[[], Path],
    ) -> None:
        assert log.started is not None, "the log begins with the engine's sizes"
        self._log = log
        self._header = LogHeader(
            version=installed_version(),
            written_at=time.time(),
            clock=clock(),
            started=log.started,
            config=_recorded(config),
            has_token_ids=log.keeps_token_ids,
        )
        self._fault_folder = fault_folder
        self._recording: Recording | None = None

    def record(self, path: str) -> None:
        """Write all events from the first on into a file, until `close`. Raises ConfigError if it cannot be written."""
        self._recording = Recording(path, self._header, self._log)

    def dump(self) -> bytes:
        """The events in memory, as a log without token ids: others than those who asked for these may read it. Any
        thread may call it; it leaves the engine's thread most of the time."""
        return self._packed(lambda events: map(_without_token_ids, _in_slices(events)), has_token_ids=False)

    def save(self, path: str) -> None:
        """Write the events in memory into a new file."""
        with open_new(path) as file:
            file.write(self._packed(_in_slices, has_token_ids=self._log.keeps_token_ids))

    def explain_fault(self, fault: BaseException) -> str:
        """Save the events before a fault that ends the engine -> the fault, and which file has them."""
        what = str(fault) if isinstance(fault, EngineDeadError) else f"the engine stopped: {fault!r}"
        try:
            if self._recording is not None:
                path = self._recording.path
                self._recording.close()
            elif self._log.is_on:
                path = self._save_fault()
            else:
                return what
        except OSError as error:
            return f"{what}; its last events could not be saved: {error}"
        return f"{what}; its last events are in {path}: 'octavo explain --log {path}' tells what happened"

    def close(self) -> None:
        if self._recording is not None:
            self._recording.close()

    def _packed(self, prepare: Callable[[list[Event]], Iterable[Event]], *, has_token_ids: bool) -> bytes:
        events, file = list(self._log), io.BytesIO()
        is_whole = bool(events) and events[0] is self._log.started
        header = replace(self._header, is_whole=is_whole, has_token_ids=has_token_ids)
        LogWriter(file, header).write(prepare(events))
        return file.getvalue()

    def _save_fault(self) -> str:
        folder = self._fault_folder() / "events"
        folder.mkdir(exist_ok=True)
        old = sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in old[: max(0, len(old) + 1 - NUM_FAULTS_KEPT)]:
            path.unlink(missing_ok=True)
        path = folder / f"{_PREFIX}{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}{_SUFFIX}"
        path.write_bytes(self._packed(list, has_token_ids=self._log.keeps_token_ids))
        return str(path)


def _recorded(config: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Without the text of a template, which may be a system prompt, and without URLs, which may hold a password."""
    kept = {section: dict(options) for section, options in config.items() if section != "observe"}
    kept.get("model", {}).pop("chat_template", None)
    return kept


def _without_token_ids(event: Event) -> Event:
    if type(event) is Arrived and event.prompt_token_ids:
        return replace(event, prompt_token_ids=())
    return replace(event, token_ids=()) if type(event) is Sampled and event.token_ids else event


def _in_slices(events: Iterable[Event]) -> Iterator[Event]:
    for number, event in enumerate(events, 1):
        yield event
        if number % _SLICE == 0:
            time.sleep(_PAUSE_S)


class Recording:
    """Owner of the file and of the thread that writes it."""

    def __init__(self, path: str, header: LogHeader, log: EventLog) -> None:
        self.path = os.path.abspath(path)
        self._file = open_new(path)
        self._writer = LogWriter(self._file, header)
        self._file.flush()
        self._queue: deque[Event] = deque(log)
        self._num_lost = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="octavo-recorder", daemon=True)
        log.listen(self._take)
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Write what has happened so far, and end."""
        self._closing.set()
        self._thread.join()
        atexit.unregister(self.close)

    def _take(self, event: Event) -> None:
        """Called in the engine's thread."""
        if len(self._queue) < MAX_WAITING:
            self._queue.append(event)
        else:
            self._num_lost += 1

    def _run(self) -> None:
        try:
            with self._file:
                while not self._closing.wait(PATIENCE_S):
                    self._write()
                self._write()
        except OSError as error:
            LOGGER.error("the event log %s cannot be written any more: %s", self.path, error)

    def _write(self) -> None:
        num_lost, self._num_lost = self._num_lost, 0
        events = [self._queue.popleft() for _ in range(len(self._queue))]
        if num_lost:
            events.append(EventsLost(events[-1].time, num_lost))
        if events:
            self._writer.write(_in_slices(events))
            self._file.flush()


def open_new(path: str) -> BinaryIO:
    """Open a file for a new log. A log that is there is kept, as PATH.before; any other file is refused."""
    try:
        if os.path.lexists(path) and os.path.getsize(path):
            header, _ = read_log(path)
            os.replace(path, f"{path}.before")
            LOGGER.info("the event log %s, of Octavo %s, is now %s.before", path, header.version, path)
        return open(path, "wb")
    except LogError as error:
        raise ConfigError(f"no event log can be written to {path!r}, where something else is: {error}") from error
    except OSError as error:
        raise ConfigError(f"no event log can be written to {path!r}: {error.strerror}; choose another file") from error
