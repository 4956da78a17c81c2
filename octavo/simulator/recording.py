"""Records a simulation: the same event log as a real run's, which pictures and explanations read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from octavo import __version__
from octavo.errors import ConfigError
from octavo.observe.event_log import EventLog
from octavo.observe.events import Event
from octavo.observe.flight_log import LogHeader, LogWriter

_FULL = 4096  # events that are written at once


@contextmanager
def recording(path: str, events: EventLog, config: Mapping[str, dict[str, Any]]) -> Iterator[None]:
    """Write all events of an engine that has not run yet. config: option -> value, by section."""
    assert events.started is not None, "a log begins with the engine's sizes"
    header = LogHeader(
        version=__version__, written_at=time.time(), clock=0.0, started=events.started, config=dict(config)
    )
    pending: list[Event] = [events.started]
    try:
        with open(path, "wb") as file:
            writer = LogWriter(file, header)

            def take(event: Event) -> None:
                pending.append(event)
                if len(pending) >= _FULL:
                    writer.write(pending)
                    pending.clear()

            events.listen(take)
            yield
            writer.write(pending)
    except OSError as error:
        raise ConfigError(f"the event log {path} cannot be written: {error}") from None
