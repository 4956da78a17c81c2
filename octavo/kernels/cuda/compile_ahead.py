"""Compiling a server's kernels many at a time, before it first runs them.

    engine's process      imports, loads weights | rehearses: launches a, b, a, c ... | waits | runs steps
                             starts                   of which none runs ↓ a ↓ b ↓ c     ↑       ↓ finds a, b, c
    compiling process        imports ............ | forks: [ compile a ][ compile c ]   ends
                                                           [ compile b ......... ]          in Triton's cache

Compiled one after another, kernels take most of a server's first start on a machine. Threads would not help: half of
the compiler is Python. A file in the cache folder records that a start with the same settings has compiled everything;
later starts then skip this.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from octavo import env
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.rehearsal import rehearsing

PATIENCE_S = 120.0  # how long to wait for kernels; those still missing are compiled when first needed


class KernelCompiler:
    """The engine's handle on the compiling process. Failures cost only time."""

    @classmethod
    def for_first_start(cls, gpu: GPU | None, settings: object) -> KernelCompiler | None:
        """None if there is no GPU, or a start with these settings has compiled everything. settings: they decide
        which kernels are needed; equal settings have equal `repr`s."""
        versions = [_version(package) for package in ("octavo", "triton", "torch")]
        if gpu is None or not versions[1]:
            return None
        name = hashlib.sha256(repr((gpu, versions, settings)).encode()).hexdigest()[:24]
        mark = env.cache_dir() / "compiled" / name
        return None if mark.exists() else cls(gpu, mark)

    def __init__(self, gpu: GPU, mark: Path) -> None:
        self._mark = mark
        # It imports from where this process does, whatever directory either was started in.
        code = f"import sys; sys.path[:] = {sys.path!r}; from octavo.kernels.cuda.compile_process import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(10 * gpu.capability[0] + gpu.capability[1])],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a kernel that fails there is compiled here again, and reports its error here
            text=True,
            start_new_session=True,  # one group with its children
        )

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside this context this thread's Triton launches do nothing, and other threads' launches wait. When it
        ends, their kernels are compiled."""
        with rehearsing(self._send):
            yield
        with suppress(OSError):
            self._input.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)

    def remember(self) -> None:
        """Record that everything is compiled, so that later starts skip this."""
        with suppress(OSError):
            self._mark.parent.mkdir(exist_ok=True)
            self._mark.touch()

    def close(self) -> None:
        """End the process and its children, whatever they are doing."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with suppress(OSError):
            self._input.close()

    @property
    def _input(self) -> Any:
        assert self._process.stdin is not None, "it was opened as a pipe"
        return self._process.stdin

    def _send(self, kernel: dict[str, str]) -> None:
        with suppress(OSError):  # it has ended
            self._input.write(json.dumps(kernel) + "\n")
            self._input.flush()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
