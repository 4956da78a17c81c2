"""A checkpoint file as bytes in memory, mapped: nothing is read until it is touched, nothing is copied."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError
from octavo.models.regular_file import open_regular


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
