"""Launches that launch nothing: each kernel that one would need is told of instead, once.

Triton has a hook for a kernel that it would compile, which may say that it need not; then nothing is launched. But it
asks no second time for a kernel that it finds among a function's own, so a stand-in is put there. Kernels that were
compiled before are out of sight meanwhile: they would run, on what others have not written. No method of Triton's is
replaced.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: what a process needs to compile a kernel: its module, its name, and Triton's own description of how it is called
Kernel = dict[str, str]


@contextmanager
def rehearsing(tell: Callable[[Kernel], None]) -> Iterator[None]:
    """Within, this thread's launches launch nothing and others' wait."""
    from triton import knobs

    rehearsal, hook = _Rehearsal(tell), knobs.runtime.jit_cache_hook
    compiled = [(caches, dict(caches)) for caches in _kernel_caches()]
    for caches, _ in compiled:
        caches.clear()
    knobs.runtime.jit_cache_hook = rehearsal.would_compile
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook = hook
        rehearsal.end()
        for caches, kept in compiled:
            caches.clear()
            caches.update(kept)
        rehearsal.is_over.set()


def _kernel_caches() -> list[dict[Any, Any]]:
    """Of each of our functions, by device: what it was compiled to."""
    from triton.runtime import JITFunction

    modules = [module for name, module in sys.modules.items() if name.startswith("octavo.kernels.triton.")]
    ours = {id(one): one for module in modules for one in vars(module).values() if isinstance(one, JITFunction)}
    return [function.device_caches for function in ours.values()]


class _Rehearsal:
    """Owner of the stand-ins."""

    def __init__(self, tell: Callable[[Kernel], None]) -> None:
        self._tell = tell
        self._thread = threading.get_ident()
        self._pending: list[tuple[dict[str, object], str]] = []
        self.is_over = threading.Event()

    def would_compile(self, *, fn: Any, compile: dict[str, Any], **about: Any) -> bool:
        """Triton's hook. True: it need not."""
        if self.is_elsewhere():
            self.is_over.wait()
            return False
        kernels, key = fn.jit_function.device_caches[compile["device"]][0], compile["key"]
        kernels[key] = _Pending(self, fn.jit_function, compile["specialization_data"])
        self._pending.append((kernels, key))
        self._tell({"module": fn.module, "name": fn.name, "data": compile["specialization_data"]})
        return True

    def is_elsewhere(self) -> bool:
        return threading.get_ident() != self._thread

    def end(self) -> None:
        for kernels, key in self._pending:
            del kernels[key]


class _Pending:
    """In the place of a kernel that somebody compiles, with what Triton asks of one that it launches."""

    function = packed_metadata = None

    def __init__(self, rehearsal: _Rehearsal, function: Any, data: str) -> None:
        self._rehearsal = rehearsal
        self._function = function
        self._data = data

    def launch_metadata(self, *launch: Any) -> None:
        return None

    def run(self, x: int, y: int, z: int, stream: int, function: None, packed: None, told: None, *rest: Any) -> None:
        """rest: hooks, and the kernel's arguments."""
        if not self._rehearsal.is_elsewhere():
            return
        self._rehearsal.is_over.wait()
        kernel = self._function.preload(self._data)
        told = kernel.launch_metadata((x, y, z), stream, *rest[2:])
        kernel.run(x, y, z, stream, kernel.function, kernel.packed_metadata, told, *rest)
