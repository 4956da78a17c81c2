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
    """The running compilers, which can all be ended after one fails or at Ctrl-C."""

    def __init__(self) -> None:
        self._is_over = False

    def run(self, command: list[str], work: str) -> None:
        """work: the folder for the compiler's temporary files, so that only one disk needs room. Libraries preloaded
        into this process, such as a sanitizer, are kept out of the compiler."""
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        code, output = self._wait_for(command, environment | {"TMPDIR": work, "LC_ALL": "C"})
        if code == 0:
            return
        if os.strerror(errno.ENOSPC) in output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), work)
        tail = "\n".join(output.splitlines()[-_ERROR_TAIL_LINES:])
        raise KernelBuildError(
            "the C++ compiler refused the CPU kernels; set CXX to g++ 11, clang 14 or newer, or use "
            f"backend='reference'.\n{shlex.join(command)}\n{tail}"
        )

    def end(self) -> None:
        self._is_over = True

    def _wait_for(self, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        """-> exit code and output."""
        if self._is_over:
            return 1, "ended"
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, errors="replace", env=environment
        ) as process:
            while not self._is_over:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    out, errors = process.communicate(timeout=_GLANCE_S)
                    return process.returncode, (errors or out).strip()
            process.kill()  # what it started may hold the pipes for a while: nobody reads them to their end
        return 1, "ended"
