"""Files in a cache folder, checked before use, and cleaning up after dead builds.

    octavo_kernels.so          a file
    octavo_kernels.so.sha256   its seal: the hash of what was written

A power cut, a full disk or an interrupted copy leaves empty or truncated files. Mapping such a library kills the
process with SIGBUS, so a file without a matching seal counts as missing and is built again.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from contextlib import suppress
from pathlib import Path

BUILDING = "building-"  # prefix of folders that a build is working in
_ABANDONED_S = 3600.0  # no build takes this long


def seal(path: Path) -> None:
    _seal_of(path).write_text(_hash(path))


def is_whole(path: Path) -> bool:
    """Whether the file matches its seal. Takes about a millisecond for two MiB."""
    try:
        return _seal_of(path).read_text() == _hash(path)
    except (OSError, UnicodeDecodeError):
        return False


def put(made: Path, target: Path) -> None:
    """Seal a file and move it to its place, on the same file system. A reader never sees part of it."""
    seal(made)
    _seal_of(made).replace(_seal_of(target))
    made.replace(target)


def remove_abandoned(directory: Path) -> None:
    """Remove the folders of killed builds, but none that may still be running."""
    for path in directory.glob(f"{BUILDING}*"):
        with suppress(OSError):  # another process removes it too
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
