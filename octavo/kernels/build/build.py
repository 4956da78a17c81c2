"""Builds the C++ kernels, once for each machine, and loads them.

    sources + headers + flags + compiler + CPU  --sha256-->  key
    ~/.cache/octavo/kernels/<key>/octavo_kernels.so

The key covers everything that the machine code depends on, so different machines may share a cache directory, and
an upgrade never loads a stale library. A build runs in a directory beside the final one and is renamed into place.
A library is checked before it is loaded (kept_files.py), and a broken one is built again. With the library in the
cache, loading takes a few milliseconds and needs no compiler. If the cache cannot be written, or its disk is full,
the temporary folder is used.

Object files are kept too, each keyed by its source and that source's headers: after a change to one kernel, the next
start compiles that kernel and links.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from octavo import env
from octavo.errors import BackendUnavailableError, ConfigError, KernelBuildError
from octavo.kernels.build import kept_files
from octavo.kernels.build.toolchain import Compilers, Toolchain, cpu_identity, find_toolchain
from octavo.observe.machine import num_cores

LIBRARY_NAME = "octavo_kernels.so"
SECONDS_PER_SOURCE = 1.5  # of one core, on average


def load() -> ctypes.CDLL:
    """Load the kernels, and build them first if needed. Raises BackendUnavailableError or its KernelBuildError."""
    return _load(env.cpu_isa(), env.preferred_cache_dir(), env.cxx(), env.sanitizes_kernels())


def why_not() -> str | None:
    """None if the kernels load here, else the reason and the fix. Builds them if they are not built yet."""
    try:
        load()
    except BackendUnavailableError as error:
        return str(error)
    return None


@lru_cache
def _load(isa: env.CpuIsa, cache_dir: Path, cxx: str | None, sanitizes: bool) -> ctypes.CDLL:
    source_dir = find_sources()
    toolchain = find_toolchain(isa, cxx, sanitizes=sanitizes)
    name = library_path(source_dir, toolchain, isa)
    if not kept_files.is_whole(path := cache_dir / name):
        try:
            build(source_dir, toolchain, isa, path)
        except OSError as error:
            path = _build_in_temporary_folder(source_dir, toolchain, isa, name, f"{cache_dir}: {error.strerror}")
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # for example, a file system mounted noexec
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
    package = Path(__file__).resolve().parents[2]
    for candidate in (package / "csrc", package.parent / "csrc"):
        if (candidate / "cpu").is_dir():
            return candidate
    raise BackendUnavailableError(
        f"the C++ sources of the cpu backend are in neither {package} nor {package.parent}; reinstall octavo"
    )


def library_path(source_dir: Path, toolchain: Toolchain, isa: env.CpuIsa) -> Path:
    """The library's place in a cache folder."""
    return Path("kernels", cache_key(source_dir, toolchain, isa), LIBRARY_NAME)


def cache_key(source_dir: Path, toolchain: Toolchain, isa: env.CpuIsa) -> str:
    """The library's key: a hash of everything that its machine code depends on."""
    headers = sorted([*source_dir.glob("cpu/*.h"), *source_dir.glob("include/octavo/*.h")])
    return _digest(source_dir, toolchain, isa, [*_source_files(source_dir), *headers])


def _digest(source_dir: Path, toolchain: Toolchain, isa: env.CpuIsa, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for part in (*toolchain.command, toolchain.identity, *toolchain.flags, platform.machine(), sys.platform):
        digest.update(part.encode() + b"\0")
    if isa == "native":
        digest.update(cpu_identity().encode())
    for path in files:
        digest.update(str(path.relative_to(source_dir)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _source_files(source_dir: Path) -> list[Path]:
    return sorted([*source_dir.glob("cpu/*.cpp"), *source_dir.glob("bindings/*.cpp")])


def _with_includes(source_dir: Path, source: Path) -> list[Path]:
    """The file and all project headers that it includes, directly or indirectly."""
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


def _objects(source_dir: Path, toolchain: Toolchain, isa: env.CpuIsa, kernels_dir: Path) -> dict[Path, Path]:
    """Each source's object file."""
    return {
        source: kernels_dir
        / "objects"
        / f"{source.stem}-{_digest(source_dir, toolchain, isa, _with_includes(source_dir, source))}.o"
        for source in _source_files(source_dir)
    }


def stale_sources(source_dir: Path, toolchain: Toolchain, isa: env.CpuIsa, target: Path) -> list[Path]:
    """What `build` would compile; nothing also if it would only link."""
    objects = _objects(source_dir, toolchain, isa, target.parent.parent)
    return [source for source, output in objects.items() if not kept_files.is_whole(output)]


#: called with each file that was compiled, then with the library, and the seconds that it took
Finished = Callable[[Path, float], None]


def build(
    source_dir: Path, toolchain: Toolchain, isa: env.CpuIsa, target: Path, finished: Finished | None = None
) -> None:
    """Compile and link into `target`'s directory. One process builds, and others wait for it. Raises OSError if the
    directory cannot be written."""
    kernels_dir = target.parent.parent
    with _lock(target.parent):
        if kept_files.is_whole(target):
            return
        kept_files.remove_abandoned(kernels_dir)
        (kernels_dir / "objects").mkdir(exist_ok=True)
        objects = _objects(source_dir, toolchain, isa, kernels_dir)
        missing = [source for source, output in objects.items() if not kept_files.is_whole(output)]
        if finished is None:
            estimate = 2 + round(SECONDS_PER_SOURCE * len(missing) / num_cores())
            print(f"octavo: building CPU kernels, about {estimate} s, once", file=sys.stderr, flush=True)
        building = kept_files.BUILDING
        # The children of a stopped compiler may still write there; files that cannot be removed now are abandoned.
        with tempfile.TemporaryDirectory(dir=kernels_dir, prefix=building, ignore_cleanup_errors=True) as work:
            compilers = Compilers()
            stale = {source: objects[source] for source in missing}
            _compile(compilers, toolchain, source_dir, stale, Path(work), finished)
            library = Path(work) / "library" / LIBRARY_NAME
            library.parent.mkdir()
            command = [*toolchain.command, *toolchain.flags, "-shared", *map(str, objects.values())]
            begin = time.monotonic()
            compilers.run([*command, "-o", str(library)], work)
            kept_files.seal(library)
            if target.parent.exists():  # a broken one
                target.parent.rename(Path(work) / "broken")
            library.parent.rename(target.parent)
        if finished is not None:
            finished(target, time.monotonic() - begin)


def _compile(
    compilers: Compilers, toolchain: Toolchain, source_dir: Path, objects: dict[Path, Path], work: Path,
    finished: Finished | None,
) -> None:  # fmt: skip
    """Compile each source to its object, one compiler per core."""
    includes = (f"-I{source_dir / 'include'}", f"-I{source_dir}")

    def compile_one(source: Path) -> None:
        output, begin = work / objects[source].name, time.monotonic()
        command = [*toolchain.command, *toolchain.flags, *includes, "-c", str(source), "-o", str(output)]
        compilers.run(command, str(work))
        kept_files.put(output, objects[source])
        if finished is not None:
            finished(source, time.monotonic() - begin)

    with ThreadPoolExecutor(num_cores()) as pool:
        try:
            list(pool.map(compile_one, objects))
        except BaseException:  # a compiler's error, or Ctrl-C
            compilers.end()
            raise


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    import fcntl

    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.parent / f"{directory.name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
