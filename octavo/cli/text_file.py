"""A text that a flag names."""

from __future__ import annotations

from pathlib import Path

from octavo.errors import ConfigError

_LARGEST_TEXT = 1 << 28


def read_text(flag: str, source: str, otherwise: str = "") -> str:
    """Raises ConfigError. otherwise: what else is allowed, such as "none and "."""
    given, allowed = repr(source[:80]), f"allowed are {otherwise}a file of up to {_LARGEST_TEXT >> 20} MiB"
    try:
        path = Path(source)
        if path.stat().st_size <= _LARGEST_TEXT and path.is_file():
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {given} is not UTF-8: {error.reason} at byte {error.start}") from None
    except (OSError, ValueError) as error:  # no such file, a name too long, a NUL
        raise ConfigError(f"{flag} {given} cannot be read: {getattr(error, 'strerror', error)}; {allowed}") from None
    raise ConfigError(f"{flag} is {given}, {allowed}")
