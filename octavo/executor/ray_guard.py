"""A process that outlives its engine for a moment: it kills what a killed engine's own Ray cluster would leave behind.

    engine ── driver ── raylet ── agents    killed: the raylet ends at once, but its agents tell the dead cluster about
                 └───── guard               it for a minute; the guard reads the end of its input, and kills them

It runs as a script, so that it imports next to nothing. Arguments: pid:start of each process, as /proc tells it, since
another may have the number by then. Linux only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def raylets() -> set[int]:
    """The nodes of clusters that this process has started; none where there is no /proc."""
    children = [pid for pid, (parent, _) in _processes().items() if parent == os.getpid()]
    return {pid for pid in children if _name(pid) == "raylet"}


def guard(nodes: set[int]) -> subprocess.Popen[bytes] | None:
    """The guard of raylets that this process has started; its input ends with this process. None: there are none."""
    words = [f"{pid}:{start}" for pid, (parent, start) in _processes().items() if parent in nodes]
    if not words:
        return None
    command = [sys.executable, "-I", "-S", __file__, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _processes() -> dict[int, tuple[int, str]]:
    """Of each process the parent, and when it started."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            words = entry.read_text().rpartition(")")[2].split()
            found[int(entry.parent.name)] = int(words[1]), words[19]
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def main() -> None:
    sys.stdin.buffer.read()  # until the driver has ended
    left = _processes()
    for word in sys.argv[1:]:
        pid, _, start = word.partition(":")
        if int(pid) in left and left[int(pid)][1] == start:
            with suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)


if __name__ == "__main__":
    main()
