"""Compilers that run side by side; all end when one of them refuses, or at Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import subprocess

from octavo.errors import KernelBuildError

_ERROR_TAIL_LINES = 20
_GLANCE_S = 0.1  # between looks at whether all is over


class Compilers:
    """Those that run, so that nobody has to wait for them after one has refused, or after Ctrl-C."""

    def __init__(self) -> None:
        self._is_over = False

    def run(self, command: list[str], work: str) -> None:
        """work: where the compiler's own temporary files go, so that one disk has to have room. What was preloaded
        into this process, such as a sanitizer, is none of the compiler's business."""
        surroundings = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        code, said = self._wait_for(command, surroundings | {"TMPDIR": work, "LC_ALL": "C"})
        if code == 0:
            return
        if os.strerror(errno.ENOSPC) in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), work)
        tail = "\n".join(said.splitlines()[-_ERROR_TAIL_LINES:])
        raise KernelBuildError(
            "the C++ compiler refused the CPU kernels; set CXX to g++ 11, clang 14 or newer, or use "
            f"backend='reference'.\n{shlex.join(command)}\n{tail}"
        )

    def end(self) -> None:
        self._is_over = True

    def _wait_for(self, command: list[str], surroundings: dict[str, str]) -> tuple[int, str]:
        """-> exit code, and what it said."""
        if self._is_over:
            return 1, "ended"
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, errors="replace", env=surroundings
        ) as process:
            while not self._is_over:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    out, errors = process.communicate(timeout=_GLANCE_S)
                    return process.returncode, (errors or out).strip()
            process.kill()  # what it started may hold the pipes for a while: nobody reads them to their end
        return 1, "ended"
