"""Compiling a server's kernels many at a time, before it first runs them.

    engine's process      imports, loads weights | rehearses: launches a, b, a, c ... | waits | runs steps
                             starts                   of which none runs ↓ a ↓ b ↓ c     ↑       ↓ finds a, b, c
    compiling process        imports ............ | forks: [ compile a ][ compile c ]   ends
                                                           [ compile b ......... ]          in Triton's cache

On a new machine kernels take most of a server's start, if they are compiled one after another. Threads would not do:
half of the compiler is Python. Once a start with the same settings has compiled all it needs, which a file in the cache
folder says, later ones skip this.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from octavo import env
from octavo.kernels.cuda.driver import GPU

_PENDING = object()  # in a kernel's place: somebody compiles it
PATIENCE_S = 120.0  # for kernels that are still being compiled: what is missing then is compiled where it is needed


class KernelCompiler:
    """The compiling process, as the engine sees it. Nothing depends on it but time."""

    @classmethod
    def for_first_start(cls, gpu: GPU | None, settings: object) -> KernelCompiler | None:
        """None where there is nothing to compile for, or a start with these settings has compiled all. settings: what
        the choice of kernels depends on; equal ones have equal `repr`s."""
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
            stderr=subprocess.DEVNULL,  # what fails there is compiled here again, and its error told here
            text=True,
            start_new_session=True,  # one group with its children
        )

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Within, this thread's launches of Triton's launch nothing, and others' wait; when it ends, what they need is
        compiled."""
        from triton import knobs
        from triton.runtime import JITFunction

        run, hook = JITFunction.run, knobs.runtime.jit_cache_hook
        thread, is_over = threading.get_ident(), threading.Event()
        pending: list[tuple[dict[str, object], str]] = []

        def run_nothing(kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                return run(kernel, *args, grid=grid, warmup=True, **kwargs)
            is_over.wait()
            return run(kernel, *args, grid=grid, warmup=warmup, **kwargs)

        JITFunction.run, knobs.runtime.jit_cache_hook = run_nothing, partial(self._send, pending)
        try:
            yield
        finally:
            JITFunction.run, knobs.runtime.jit_cache_hook = run, hook
            for kernels, key in pending:
                del kernels[key]
            is_over.set()
        self._wait()

    def remember(self) -> None:
        """All that was needed has been compiled: later starts need not look ahead."""
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

    def _send(
        self, pending: list[tuple[dict[str, object], str]], *, fn: Any, compile: dict[str, Any], **about: Any
    ) -> bool:
        """Triton's hook for a kernel that it would compile; True: it need not. It asks no second time for one that it
        finds among a function's kernels, so something is put there, and noted in `pending`."""
        kernels, key = fn.jit_function.device_caches[compile["device"]][0], compile["key"]
        kernels[key] = _PENDING
        pending.append((kernels, key))
        line = json.dumps({"module": fn.module, "name": fn.name, "data": compile["specialization_data"]})
        with suppress(OSError):  # it has ended
            self._input.write(line + "\n")
            self._input.flush()
        return True

    def _wait(self) -> None:
        with suppress(OSError):
            self._input.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
