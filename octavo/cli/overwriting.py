"""A file that a command reads is not one that it may write: checked before either is opened."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping

from octavo.errors import ConfigError


def check_not_read(flag: str, path: str | None, read: Mapping[str, str | None]) -> None:
    """Raises ConfigError if `flag` names a file that the command reads, by whatever name or link. read: what the
    sources are called -> their paths, - for standard input; a folder stands for what is in it."""
    if path is None or not os.path.exists(path):
        return
    written = os.stat(path)
    if not os.path.isfile(path):
        return  # a terminal, a pipe or /dev/null holds nothing that could be lost
    for name, source in read.items():
        if source is not None and any(os.path.samestat(written, one) for one in _files(source)):
            raise ConfigError(f"{flag} {path} is the file that {name} reads, and would destroy it: name another file")


def _files(source: str) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError, ValueError):  # what is not there or has no file is not overwritten
        if source == "-":
            yield os.fstat(sys.stdin.fileno())
        elif os.path.isdir(source):
            yield from (entry.stat() for entry in os.scandir(source))
        else:
            yield os.stat(source)
