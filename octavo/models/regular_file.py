"""Reads and maps a model's files: only regular files of a plausible size.

Opening a pipe waits for a writer, a device never ends, and a link may be broken (a hub cache whose blobs were
deleted). Each of these raises an error with the path before anything is read.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError

#: far above any real configuration, tokenizer or index
LARGEST_TEXT_BYTES = 1 << 28


def is_there(path: Path) -> bool:
    """Whether an entry of any kind has that name. One that exists must then be readable."""
    return os.path.lexists(path)


def open_regular(path: Path) -> BinaryIO:
    """The file, open for reading. Raises ModelLoadError for anything but a regular file, without blocking."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind != stat.S_IFREG:
            raise ModelLoadError(f"{path} is {_KINDS.get(kind, 'no regular file')}; allowed is a regular file")
        return path.open("rb")
    except FileNotFoundError:
        if path.is_symlink():
            raise ModelLoadError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; download the model again"
            ) from None
        raise ModelLoadError(f"{path} cannot be read: No such file or directory") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a name that no file system can have: a NUL, half a surrogate pair
        raise ModelLoadError(f"{str(path)!r} cannot be read: {error}") from None


def read_regular(path: Path) -> bytes:
    """The content of a configuration, tokenizer, template or index."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_TEXT_BYTES:
            raise ModelLoadError(f"{path} has {size} bytes; allowed are {LARGEST_TEXT_BYTES}: download it again")
        try:
            content = file.read(LARGEST_TEXT_BYTES)
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    _check_no_pointer(path, content)
    return content


def read_text(path: Path) -> str:
    """`read_regular` as text: UTF-8, with or without a byte order mark."""
    try:
        return read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8") from None


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


#: what stands in place of a large file in a repository that was cloned without git-lfs
_POINTER = b"version https://git-lfs.github.com/spec/"


def _check_no_pointer(path: Path, content: bytes) -> None:
    if content.startswith(_POINTER):
        raise ModelLoadError(
            f"{path} is a Git LFS pointer in place of the file: run `git lfs pull` in its folder, or download the file"
        )


def map_file(path: Path) -> NDArray[np.uint8]:
    """The whole file as a read-only view; the mapping lives as long as any view of it."""
    try:
        with open_regular(path) as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise ModelLoadError(f"{path} is empty: download or copy it again") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be mapped: {error.strerror}") from None
    _check_no_pointer(path, mapping[: len(_POINTER)])
    return np.frombuffer(mapping, np.uint8)


def read_whole(path: Path) -> NDArray[np.uint8]:
    """The whole file in memory, where it stays as it is whatever becomes of the file."""
    with open_regular(path) as file:
        try:
            content = np.fromfile(file, np.uint8)
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    _check_no_pointer(path, content[: len(_POINTER)].tobytes())
    return content
