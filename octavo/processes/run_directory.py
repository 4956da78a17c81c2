"""The folder in which a server's processes meet: its sockets, and what the engine writes down for those after it."""

from __future__ import annotations

import os
import tempfile

#: what a Unix socket's path may have, on every system
_MAX_PATH_LEN = 100


def make_run_directory() -> str:
    """Private, and short enough for a socket in it."""
    path = tempfile.mkdtemp(prefix="octavo-")
    if len(path) > _MAX_PATH_LEN - len("/engine-999999"):
        os.rmdir(path)
        path = tempfile.mkdtemp(prefix="octavo-", dir="/tmp")
    return path
