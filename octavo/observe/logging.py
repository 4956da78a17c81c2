"""The server's log: lines on standard error with the time and the name of the process.

12:04:31 engine      prompt 812.0 tok/s, generation 3,204.5 tok/s, running 64, waiting 3, KV 41.2%
12:04:40 front end 0 WARNING  ...
"""

from __future__ import annotations

import logging
import sys

LOGGER = logging.getLogger("octavo")


def log_to_stderr(process: str) -> None:
    """Log to standard error. process: this process's name in the log, a word or two."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(process))
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


class _Lines(logging.Formatter):
    """Names the level only from WARNING up."""

    def __init__(self, process: str) -> None:
        super().__init__("%(asctime)s %(process_name)s %(level)s%(message)s", "%H:%M:%S")
        self._process = f"{process:<11}"

    def format(self, record: logging.LogRecord) -> str:
        record.process_name = self._process
        record.level = f"{record.levelname}  " if record.levelno >= logging.WARNING else ""
        return super().format(record)
