"""Libraries that tests compile, kept beside engines' kernels: compiled again only when something in them has changed.

compiler + words of its command + a source and all that it includes  --sha256-->  ~/.cache/octavo/tests/<key>.so
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from octavo import env
from octavo.errors import BackendUnavailableError
from octavo.kernels.build import includes, kept_files
from octavo.kernels.build.toolchain import Toolchain, find_toolchain

#: after so long without use a library is removed
KEPT_S = 14 * 24 * 3600.0


def compiler() -> Toolchain:
    try:
        return find_toolchain("generic", None)
    except BackendUnavailableError as error:
        pytest.skip(str(error))


def with_includes(names: Iterable[str], folders: Sequence[Path]) -> dict[str, Path]:
    """Sources, and all that they include in quotes, all of which are there."""
    found = {}
    for name, path in includes.with_includes(names, folders).items():
        assert path is not None, f"{name} is in none of {folders}"
        found[name] = path
    return found


def kept_library(words: Sequence[str], made_of: Mapping[str, Path], compile_to: Callable[[Path], None]) -> Path:
    """The library that `compile_to` makes, now or in an earlier run. words: of its command, without places."""
    digest = hashlib.sha256(repr((compiler().identity, list(words))).encode())
    for name, path in sorted(made_of.items()):
        digest.update(f"\0{name}\0".encode() + path.read_bytes())
    folder = env.cache_dir() / "tests"
    folder.mkdir(exist_ok=True)
    library = folder / f"{digest.hexdigest()[:24]}.so"
    with alone(library.with_suffix(".lock")):
        if not kept_files.is_whole(library):
            _remove_unused(folder)
            with tempfile.TemporaryDirectory(dir=folder) as made:
                compile_to(Path(made) / library.name)
                kept_files.put(Path(made) / library.name, library)
        os.utime(library)
    return library


def compiled_beside(main: str, folders: Sequence[Path], flags: Sequence[str]) -> Path:
    """The library of one source, which finds all that it includes in its own folder: files are copied there."""
    made_of, command = with_includes([main], folders), [*compiler().command, *flags]

    def compile_to(library: Path) -> None:
        with tempfile.TemporaryDirectory() as side:
            for name, path in made_of.items():
                shutil.copy(path, Path(side) / name)
            subprocess.run([*command, str(Path(side) / main), "-o", str(library)], check=True)

    return kept_library(command, made_of, compile_to)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Of all processes that use this lock."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_unused(folder: Path) -> None:
    for path in folder.glob("*.so"):
        if time.time() - path.stat().st_mtime > KEPT_S:
            for ending in (".so", ".so.sha256", ".lock"):
                path.with_suffix(ending).unlink(missing_ok=True)
