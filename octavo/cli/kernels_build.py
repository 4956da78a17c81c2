"""Compile the kernels that changed: the CPU's C++, and the CUDA C++ that this machine has used.

octavo kernels build                     for this processor, and this GPU
octavo kernels build --capability 9.0    for such a GPU, which need not be here
octavo kernels build --dry-run           only list what is stale

An engine does the same when it starts. A kernel that was never used here is
compiled with its source's own parameters. A source of yours that includes one
(examples/kernels) is compiled too, once it was used, for as long as it is there.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from octavo import env
from octavo.cli.parser import CommandParser
from octavo.errors import BackendUnavailableError, ConfigError
from octavo.kernels.build import build, kept_files
from octavo.kernels.build.toolchain import find_toolchain
from octavo.kernels.cuda.driver import find_gpu
from octavo.kernels.cuda_cpp.compile import Variant, find_nvcc, used_variants
from octavo.observe.machine import num_cores


@dataclass(frozen=True, slots=True)
class Work:
    """What one toolchain has to do. stale: a name for each file. why_not: why nothing can be compiled."""

    title: str
    stale: list[str]
    compile: Callable[[Progress], None]
    why_not: str | None = None


class Progress:
    """A line for each file that was compiled."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._lock = total, 0, threading.Lock()

    def finished(self, name: str, seconds: float) -> None:
        with self._lock:
            self._done += 1
            width = len(str(self._total))
            print(f"  [{self._done:>{width}}/{self._total}] {seconds:5.1f} s  {name}", flush=True)


def add_arguments(parser: CommandParser) -> None:
    text = "compile CUDA C++ for GPUs of this compute capability (default: this machine's)"
    parser.add_argument("--capability", metavar="X.Y", help=text)
    parser.add_argument("--dry-run", action="store_true", help="list what is stale and compile nothing")


def run(args: argparse.Namespace) -> int:
    begin = time.monotonic()
    all_work = [_cpu_work(), _cuda_work(args.capability)]
    total = sum(len(work.stale) for work in all_work)
    progress = Progress(total)
    for work in all_work:
        print(f"{work.title}: {work.why_not or _count(len(work.stale))}", flush=True)
        if args.dry_run:
            print(*(f"  {name}\n" for name in work.stale), sep="", end="")
        elif work.stale:
            work.compile(progress)
    if total and not args.dry_run:
        print(f"{total} compiled in {time.monotonic() - begin:.1f} s")
    return 1 if all(work.why_not for work in all_work) else 0


def _count(num_stale: int) -> str:
    return f"{num_stale} stale" if num_stale else "up to date"


def _cpu_work() -> Work:
    title = "C++ for the CPU"
    try:
        isa, source_dir = env.cpu_isa(), build.find_sources()
        toolchain = find_toolchain(isa, env.cxx(), sanitizes=env.sanitizes_kernels())
    except BackendUnavailableError as error:
        return Work(title, [], lambda progress: None, str(error))
    target = env.cache_dir() / build.library_path(source_dir, toolchain, isa)
    if kept_files.is_whole(target):
        return Work(title, [], lambda progress: None)
    names = [_shown(path, source_dir) for path in build.stale_sources(source_dir, toolchain, isa, target)]

    def compile_all(progress: Progress) -> None:
        def finished(path: Path, seconds: float) -> None:
            progress.finished(_shown(path, source_dir), seconds)

        build.build(source_dir, toolchain, isa, target, finished)

    return Work(title, [*names, f"{build.LIBRARY_NAME}, linked"], compile_all)


def _shown(path: Path, source_dir: Path) -> str:
    return f"csrc/{path.relative_to(source_dir)}" if path.is_relative_to(source_dir) else f"{path.name}, linked"


def _cuda_work(asked: str | None) -> Work:
    capability, whose = _capability(asked)
    title = f"CUDA C++ for {whose}"
    if find_nvcc() is None:
        return Work(title, [], lambda progress: None, "there is no nvcc: pip install 'octavo[cuda]'")
    if capability is None:
        return Work(title, [], lambda progress: None, "there is none here; --capability 9.0 compiles for one elsewhere")
    stale = [variant for variant in used_variants(capability) if not variant.is_built()]

    def compile_all(progress: Progress) -> None:
        def compile_one(variant: Variant) -> None:
            begin = time.monotonic()
            variant.compile()
            progress.finished(_named(variant), time.monotonic() - begin)

        with ThreadPoolExecutor(num_cores()) as pool:  # nvcc runs in processes of its own
            list(pool.map(compile_one, stale))

    return Work(title, list(map(_named, stale)), compile_all)


def _named(variant: Variant) -> str:
    macros = " ".join(f"{key}={value}" for key, value in variant.macros)
    source = f"csrc/cuda/{variant.name}.cu" if variant.including is None else variant.including
    return f"{source}  {macros}".rstrip()


def _capability(asked: str | None) -> tuple[tuple[int, int] | None, str]:
    """The capability, and whose it is."""
    if asked is None:
        gpu = find_gpu(0)
        return (None, "a GPU") if gpu is None else (gpu.capability, f"{gpu.name}, capability {gpu.capability}")
    major, point, minor = asked.partition(".")
    if (
        not (major.isdecimal() and major.isascii() and point and minor.isdecimal() and minor.isascii())
        or len(asked) > 5
    ):
        raise ConfigError(f"--capability is {asked!r}, allowed is a compute capability such as 8.0, 9.0 or 10.0")
    if (int(major), int(minor)) < (8, 0):
        raise ConfigError(f"--capability is {asked!r}, allowed is 8.0 or more: older GPUs lack bfloat16 matrix units")
    return (int(major), int(minor)), f"capability {int(major)}.{int(minor)}"
