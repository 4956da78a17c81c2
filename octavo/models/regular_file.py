"""Files that come with a model, opened as what they must be: regular files of a size that can be.

Opening a pipe waits for whoever writes to it, a device never ends, and a link may lead nowhere (a hub cache
whose blobs were deleted): each is refused by name before anything is read.
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

#: Far above any real configuration, tokenizer or index.
LARGEST_TEXT_BYTES = 1 << 28


def is_there(path: Path) -> bool:
    """Whether the folder has an entry of that name, of whatever kind: what is there must be readable."""
    return os.path.lexists(path)


def open_regular(path: Path) -> BinaryIO:
    """The file, open for reading. Raises ModelLoadError for what is none, without waiting for it."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind != stat.S_IFREG:
            raise ModelLoadError(f"{path} is {_KINDS.get(kind, 'no regular file')}; a file is wanted there")
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
    """The whole of a configuration, tokenizer, template or index."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_TEXT_BYTES:
            raise ModelLoadError(f"{path} has {size} bytes; allowed are {LARGEST_TEXT_BYTES}: download it again")
        try:
            return file.read(LARGEST_TEXT_BYTES)
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    """The same as text: UTF-8, with or without a byte order mark."""
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


def map_file(path: Path) -> NDArray[np.uint8]:
    """The whole file as a read-only view; the mapping lives as long as any view of it."""
    try:
        with open_regular(path) as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise ModelLoadError(f"{path} is empty: download or copy it again") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be mapped: {error.strerror}") from None
    return np.frombuffer(mapping, np.uint8)
