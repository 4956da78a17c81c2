"""Builds the C++ kernels, once for each machine, and loads them.

    sources + headers + flags + compiler + CPU  --sha256-->  key
    ~/.cache/octavo/kernels/<key>/octavo_kernels.so

The key covers all that the machine code depends on, so a cache directory shared by unlike machines, or kept
across upgrades, never yields a library that does not fit. A build happens in a directory beside the final
one and is renamed into place, and what is found there is proved whole (kept_files.py): a broken library is
built again. With the library in the cache, loading takes a few milliseconds and needs no compiler to run.
Where the cache cannot be written, or its disk is full, the temporary folder serves.

Object files are kept too, each keyed by its source and the headers that one includes: after a change to one
kernel the next start compiles that kernel and links.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from octavo import env
from octavo.errors import BackendUnavailableError, ConfigError, KernelBuildError
from octavo.kernels import kept_files
from octavo.observe.machine import num_cores

LIBRARY_NAME = "octavo_kernels.so"
COMPILERS = ("g++", "clang++", "c++")
#: no -ffast-math: the sampler must see a NaN. Contraction makes a*b+c one fused operation in every loop alike.
FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-pthread", "-fvisibility-inlines-hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
#: for tests that look for accesses out of bounds and undefined arithmetic; what they find ends the process
SANITIZER_FLAGS = (
    *("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"),
    "-fno-sanitize-recover=undefined",
)
_X86 = ("x86_64", "AMD64", "i686")
_ERROR_TAIL_LINES = 20
SECONDS_PER_SOURCE = 1.5  # of one core, on average


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler and how to call it here."""

    command: tuple[str, ...]
    identity: str
    flags: tuple[str, ...]


def load() -> ctypes.CDLL:
    """The kernels, built first if need be. Raises BackendUnavailableError or its KernelBuildError."""
    return _load(env.cpu_isa(), env.preferred_cache_dir(), env.cxx(), env.sanitizes_kernels())


def why_not() -> str | None:
    """None if the kernels load here, else the reason and the cure. Builds them if they are not built yet."""
    try:
        load()
    except BackendUnavailableError as error:
        return str(error)
    return None


@lru_cache
def _load(isa: env.CpuIsa, cache_dir: Path, cxx: str | None, sanitizes: bool) -> ctypes.CDLL:
    source_dir = find_sources()
    toolchain = find_toolchain(isa, cxx, sanitizes=sanitizes)
    name = Path("kernels", cache_key(source_dir, toolchain, isa), LIBRARY_NAME)
    if not kept_files.is_whole(path := cache_dir / name):
        try:
            build(source_dir, toolchain, isa, path)
        except OSError as error:
            path = _build_in_temporary_folder(source_dir, toolchain, isa, name, f"{cache_dir}: {error.strerror}")
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # a file system that runs nothing, say
        raise KernelBuildError(
            f"the CPU kernels are built, but cannot be loaded: {error}; set OCTAVO_CACHE_DIR to a folder that "
            "programs may be run from"
        ) from error


def _build_in_temporary_folder(source_dir: Path, toolchain: Toolchain, isa: env.CpuIsa, name: Path, why: str) -> Path:
    cure = "set OCTAVO_CACHE_DIR to a folder that can be written, with 20 MiB free"
    try:
        path = env.temporary_cache_dir() / name
        if not kept_files.is_whole(path):
            print(f"octavo: CPU kernels cannot be kept in {why}; they go to {path.parents[2]}; {cure}", file=sys.stderr)
            build(source_dir, toolchain, isa, path)
    except (OSError, ConfigError) as error:
        raise KernelBuildError(f"the CPU kernels cannot be kept in {why}; nor elsewhere: {error}; {cure}") from error
    return path


def find_sources() -> Path:
    """csrc/ inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "csrc", package.parent / "csrc"):
        if (candidate / "cpu").is_dir():
            return candidate
    raise BackendUnavailableError(
        f"the C++ sources of the cpu backend are in neither {package} nor {package.parent}; reinstall octavo"
    )


def find_toolchain(isa: env.CpuIsa, cxx: str | None, *, sanitizes: bool = False) -> Toolchain:
    if os.name != "posix":
        raise BackendUnavailableError(
            f"the cpu backend is built on Linux and macOS only, this is {platform.system()}; use backend='reference'"
        )
    command = tuple(shlex.split(cxx)) if cxx else next(((name,) for name in COMPILERS if shutil.which(name)), None)
    if command is None:
        raise BackendUnavailableError(
            f"no C++ compiler: none of {', '.join(COMPILERS)} is on the PATH; install g++ 11 or clang 14 or newer "
            "(for example `apt install g++`), or set CXX"
        )
    found = shutil.which(command[0])
    if found is None:
        raise BackendUnavailableError(f"CXX is {cxx!r}, and there is no such program; set it to a C++20 compiler")
    # Which compiler, without the milliseconds it takes to ask it: an upgrade changes the file.
    real = Path(found).resolve()
    status = real.stat()
    identity = f"{real} {status.st_size} {status.st_mtime_ns}"
    flags = (*FLAGS, *_isa_flags(isa), *(SANITIZER_FLAGS if sanitizes else ()))
    return Toolchain(command, identity, flags)


def _isa_flags(isa: env.CpuIsa) -> tuple[str, ...]:
    if platform.machine() not in _X86:
        if isa == "avx2":
            raise BackendUnavailableError(
                f"OCTAVO_CPU_ISA is avx2 and this is a {platform.machine()} processor; use native or generic"
            )
        return ("-mcpu=native",) if isa == "native" else ()
    if isa == "avx2" and "avx2" not in _cpu_identity().split():
        raise BackendUnavailableError("OCTAVO_CPU_ISA is avx2 and this processor has no AVX2; use native or generic")
    return {"native": ("-march=native",), "avx2": ("-march=x86-64-v3",), "generic": ()}[isa]


@lru_cache
def _cpu_identity() -> str:
    """Model and features of the processor that runs this."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = [next(file, "") for _ in range(40)]  # the first processor's entry
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return " ".join(line.strip() for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))


def cache_key(source_dir: Path, toolchain: Toolchain, isa: env.CpuIsa) -> str:
    """Names the library: a hash of everything that its machine code depends on."""
    headers = sorted([*source_dir.glob("cpu/*.h"), *source_dir.glob("include/octavo/*.h")])
    return _digest(source_dir, toolchain, isa, [*_source_files(source_dir), *headers])


def _digest(source_dir: Path, toolchain: Toolchain, isa: env.CpuIsa, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for part in (*toolchain.command, toolchain.identity, *toolchain.flags, platform.machine(), sys.platform):
        digest.update(part.encode() + b"\0")
    if isa == "native":
        digest.update(_cpu_identity().encode())
    for path in files:
        digest.update(str(path.relative_to(source_dir)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _source_files(source_dir: Path) -> list[Path]:
    return sorted([*source_dir.glob("cpu/*.cpp"), *source_dir.glob("bindings/*.cpp")])


def _with_includes(source_dir: Path, source: Path) -> list[Path]:
    """The file and all of ours that it includes, directly or not."""
    found: dict[Path, None] = {}
    queue = [source]
    while queue:
        path = queue.pop()
        found[path] = None
        for name in re.findall(r'^\s*#include "([^"]+)"', path.read_text(), re.MULTILINE):
            for folder in (path.parent, source_dir / "include", source_dir):
                if (folder / name).exists():
                    queue += [folder / name] if folder / name not in found else []
                    break
    return sorted(found)


def build(source_dir: Path, toolchain: Toolchain, isa: env.CpuIsa, target: Path) -> None:
    """Compile and link into `target`'s directory. Of several processes one builds, the others wait for it. OSError if
    nothing can be written there."""
    kernels_dir = target.parent.parent
    with _lock(target.parent):
        if kept_files.is_whole(target):
            return
        kept_files.remove_abandoned(kernels_dir)
        objects_dir = kernels_dir / "objects"
        objects_dir.mkdir(exist_ok=True)
        objects: dict[Path, Path] = {}
        for source in _source_files(source_dir):
            digest = _digest(source_dir, toolchain, isa, _with_includes(source_dir, source))
            objects[source] = objects_dir / f"{source.stem}-{digest}.o"
        missing = [source for source, output in objects.items() if not kept_files.is_whole(output)]
        workers = num_cores()
        estimate = 2 + round(SECONDS_PER_SOURCE * len(missing) / workers)
        print(f"octavo: building CPU kernels, about {estimate} s, once", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=kernels_dir, prefix=kept_files.BUILDING) as work:
            includes = (f"-I{source_dir / 'include'}", f"-I{source_dir}")

            def compile_one(source: Path) -> None:
                output = Path(work) / objects[source].name
                command = [*toolchain.command, *toolchain.flags, *includes, "-c", str(source), "-o", str(output)]
                _run(command, work, compilers)
                kept_files.put(output, objects[source])

            compilers = _Compilers()
            with ThreadPoolExecutor(workers) as pool:
                try:
                    list(pool.map(compile_one, missing))
                except BaseException:  # a refusal, or Ctrl-C
                    compilers.end()
                    raise
            library = Path(work) / "library" / LIBRARY_NAME
            library.parent.mkdir()
            command = [*toolchain.command, *toolchain.flags, "-shared", *map(str, objects.values())]
            _run([*command, "-o", str(library)], work, compilers)
            kept_files.seal(library)
            if target.parent.exists():  # a broken one
                target.parent.rename(Path(work) / "broken")
            library.parent.rename(target.parent)


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    import fcntl

    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.parent / f"{directory.name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Compilers:
    """Those that run, so that nobody has to wait for them after one has refused, or after Ctrl-C."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._is_over = False

    def run(self, command: list[str], surroundings: dict[str, str]) -> tuple[int, str]:
        """-> exit code, and what it said."""
        if self._is_over:
            return 1, "ended"
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, errors="replace", env=surroundings
        ) as process:
            self._running.add(process)
            if self._is_over:  # meanwhile, and whoever ended them did not see this one
                process.kill()
            out, errors = process.communicate()
            self._running.discard(process)
        return process.returncode, (errors or out).strip()

    def end(self) -> None:
        self._is_over = True
        for process in list(self._running):
            process.kill()


def _run(command: list[str], work: str, compilers: _Compilers) -> None:
    """work: where the compiler's own temporary files go, so that one disk has to have room. What was preloaded into
    this process, such as a sanitizer, is none of the compiler's business."""
    surroundings = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    surroundings |= {"TMPDIR": work, "LC_ALL": "C"}
    code, said = compilers.run(command, surroundings)
    if code == 0:
        return
    if os.strerror(errno.ENOSPC) in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), work)
    tail = "\n".join(said.splitlines()[-_ERROR_TAIL_LINES:])
    raise KernelBuildError(
        "the C++ compiler refused the CPU kernels; set CXX to g++ 11, clang 14 or newer, or use backend='reference'.\n"
        f"{shlex.join(command)}\n{tail}"
    )
