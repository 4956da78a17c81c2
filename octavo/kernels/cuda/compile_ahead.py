"""Compiles a server's kernels in parallel before it first runs them.

    engine's process      imports, loads weights | rehearses: launches a, b, a, c ... | waits | runs steps
                             starts                    (none of them runs) ↓ a ↓ b ↓ c   ↑       ↓ finds a, b, c
    compiling process        imports ............ | forks: [ compile a ][ compile c ]   ends
                                                           [ compile b ......... ]          in Triton's cache

Compiling the kernels one after another takes most of a server's first start on a machine. Threads would not help: half
of the compiler is Python. A file in the cache folder records that a start with the same settings has compiled
everything; later starts then skip this.

In a rehearsal a launch only reports its kernel, once. Triton calls a hook before it compiles a kernel, and launches
nothing if the hook returns True. It does not call the hook for a kernel in the function's own cache, so a stand-in goes
there. Kernels compiled earlier leave these caches for the rehearsal: they would run, on data that other kernels have
not written. None of Triton's methods is replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from octavo import env
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.module import launch_nothing

PATIENCE_S = 120.0  # how long to wait for kernels; those still missing are compiled when first needed
#: what a process needs to compile a kernel: its module, its name, and Triton's own description of the call
Kernel = dict[str, str]


class KernelCompiler:
    """The engine's handle on the compiling process. Failures cost only time."""

    @classmethod
    def for_first_start(cls, gpu: GPU | None, settings: object) -> KernelCompiler | None:
        """None if there is no GPU, or if a start with these settings has compiled everything. settings: they decide
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
        """Inside this context, this thread's Triton launches do nothing and other threads' launches wait. At its end
        the kernels of these launches are compiled."""
        with _rehearsing(self._send):
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

    def _send(self, kernel: Kernel) -> None:
        with suppress(OSError):  # it has ended
            self._input.write(json.dumps(kernel) + "\n")
            self._input.flush()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@contextmanager
def _rehearsing(report: Callable[[Kernel], None]) -> Iterator[None]:
    from triton import knobs

    rehearsal, hook = _Rehearsal(report), knobs.runtime.jit_cache_hook
    compiled = [(caches, dict(caches)) for caches in _kernel_caches()]
    for caches, _ in compiled:
        caches.clear()
    knobs.runtime.jit_cache_hook = rehearsal.would_compile
    try:
        with launch_nothing():
            yield
    finally:
        knobs.runtime.jit_cache_hook = hook
        rehearsal.end()
        for caches, kept in compiled:
            caches.clear()
            caches.update(kept)
        rehearsal.is_over.set()


def _kernel_caches() -> list[dict[Any, Any]]:
    """For each of our functions, its compiled kernels by device."""
    from triton.runtime import JITFunction

    modules = [module for name, module in sys.modules.items() if name.startswith("octavo.kernels.triton.")]
    ours = {id(each): each for module in modules for each in vars(module).values() if isinstance(each, JITFunction)}
    return [function.device_caches for function in ours.values()]


class _Rehearsal:
    """Owns the stand-ins."""

    def __init__(self, report: Callable[[Kernel], None]) -> None:
        self._report = report
        self._thread = threading.get_ident()
        self._pending: list[tuple[dict[str, object], str]] = []
        self.is_over = threading.Event()

    def would_compile(self, *, fn: Any, compile: dict[str, Any], **about: Any) -> bool:
        """Triton's hook. True: do not compile."""
        if self.is_elsewhere():
            self.is_over.wait()
            return False
        kernels, key = fn.jit_function.device_caches[compile["device"]][0], compile["key"]
        kernels[key] = _Pending(self, fn.jit_function, compile["specialization_data"])
        self._pending.append((kernels, key))
        self._report({"module": fn.module, "name": fn.name, "data": compile["specialization_data"]})
        return True

    def is_elsewhere(self) -> bool:
        return threading.get_ident() != self._thread

    def end(self) -> None:
        for kernels, key in self._pending:
            del kernels[key]


class _Pending:
    """The stand-in for a kernel that is being compiled; it has all that Triton's launch code uses."""

    function = packed_metadata = None

    def __init__(self, rehearsal: _Rehearsal, function: Any, data: str) -> None:
        self._rehearsal = rehearsal
        self._function = function
        self._data = data

    def launch_metadata(self, *launch: Any) -> None:
        return None

    def run(self, x: int, y: int, z: int, stream: int, function: None, packed: None, meta: None, *rest: Any) -> None:
        """rest: hooks, and the kernel's arguments."""
        if not self._rehearsal.is_elsewhere():
            return
        self._rehearsal.is_over.wait()
        kernel = self._function.preload(self._data)
        meta = kernel.launch_metadata((x, y, z), stream, *rest[2:])
        kernel.run(x, y, z, stream, kernel.function, kernel.packed_metadata, meta, *rest)
