"""A folder or file that a command makes: it has its name once it is whole, and nothing is left of one that fails."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo.errors import ConfigError

_ROOM = 1 << 24  # for the tokenizer and other small files


def new_target(name: str) -> Path:
    """OUT, which nothing has yet. Raises ConfigError."""
    target = Path(name)
    try:
        if not target.parent.is_dir():
            raise ConfigError(f"OUT is {name!r}, but there is no folder {str(target.parent)!r}: make it first")
        os.lstat(target)
    except FileNotFoundError:
        return target
    except (OSError, ValueError) as error:  # a name too long, a NUL
        raise ConfigError(f"OUT is {name[:80]!r}, which cannot be a name: {error}") from None
    raise ConfigError(f"OUT is {name!r}, which exists: choose a new name, or remove it")


def check_room(target: Path, num_bytes: int) -> None:
    """Raise ConfigError if a model of this size does not fit on the disk."""
    needed, free = num_bytes + _ROOM, shutil.disk_usage(target.parent).free
    if needed > free:
        raise ConfigError(
            f"OUT is {str(target)!r}, where {free / 1e9:,.2f} GB are free, and the model takes {needed / 1e9:,.2f} GB: "
            "free the rest, or choose another disk"
        )


@contextmanager
def made_whole(target: Path, inside: str | None = None) -> Iterator[Path]:
    """A folder beside the target. At the end it becomes the target, or, with `inside`, that file of it does."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        made = folder if inside is None else folder / inside
        made.chmod((0o777 if inside is None else 0o666) & ~_umask())
        if os.path.lexists(target):
            raise ConfigError(f"OUT is {str(target)!r}, which something has made meanwhile: choose another name")
        made.rename(target)
    finally:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
