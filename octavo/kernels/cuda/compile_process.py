"""The process that `compile_ahead.py` starts: compiles the kernels it reads into Triton's cache, a child each.

    argument   the GPU's compute capability, 90
    stdin      {"module": ..., "name": ..., "data": ...}     one line per kernel; data is Triton's own description

It exits once its input and its children have ended. Nothing here touches a GPU. The process has only one thread, so
that it may fork; a child starts with everything imported.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as _compiler  # noqa: F401  imported here, once for all children
from triton.backends.nvidia import driver as nvidia
from triton.compiler import make_backend
from triton.runtime import driver
from triton.runtime.cache import triton_key

from octavo.kernels.cuda import model as _model  # noqa: F401
from octavo.kernels.cuda.driver import has_hopper_kernels
from octavo.observe.machine import num_cores


class OfflineDriver:
    """Tells Triton's compiler which GPU to compile for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


def main() -> None:
    capability = int(sys.argv[1])
    prepare(capability)
    in_children(compile_kernel, sys.stdin, num_cores())


def prepare(capability: int) -> None:
    """Do once what every child needs."""
    if has_hopper_kernels(divmod(capability, 10)):
        for name in ("attention.hopper_decode", "attention.hopper_prefill", "linear.tile_linear"):
            importlib.import_module(f"octavo.kernels.triton.{name}")
    driver.set_active(OfflineDriver(capability))
    with suppress(Exception):  # the engine will report the error
        triton_key()
        make_backend(driver.active.get_current_target()).hash()
        nvidia.CudaUtils()


def compile_kernel(line: str) -> None:
    job = json.loads(line)
    kernel = getattr(importlib.import_module(job["module"]), job["name"])
    compiled = kernel.preload(job["data"])
    if hasattr(nvidia, "make_launcher"):  # up to 3.6 a kernel's launcher is C code, compiled too
        nvidia.CudaLauncher(compiled.src, compiled.metadata)


def in_children(work: Callable[[str], None], lines: Iterable[str], most: int) -> None:
    """Run each line in its own child process, at most `most` at a time. A failed child does not affect the others."""
    running = 0
    for line in lines:
        if running == most:
            os.wait()
            running -= 1
        if not os.fork():
            status = 1
            try:
                work(line)
                status = 0
            finally:
                os._exit(status)
        running += 1
    for _ in range(running):
        os.wait()
