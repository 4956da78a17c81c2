"""The environment variables that Octavo reads, all of them.

    OCTAVO_CACHE_DIR   where built kernels, joined model files and derived tables are kept; default
                       ~/.cache/octavo
    OCTAVO_CPU_ISA     native (default): all this CPU has; avx2: any CPU with AVX2; generic: any CPU of its kind
    OCTAVO_SANITIZE    set: kernels are built with AddressSanitizer and UBSan, for tests (`make sanitize`)
    OCTAVO_DEBUG       set: the command line shows the traceback of an error, as --debug does
    OPENAI_API_KEY     the key that `octavo chat` and `octavo complete` send, unless --api-key gives another
    CXX                the C++ compiler; default: the first of g++, clang++ and c++ on the PATH

Read when asked for, not when imported, so that a test or a notebook may set them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from octavo.errors import ConfigError

CpuIsa = Literal["native", "avx2", "generic"]


def cache_dir() -> Path:
    """The cache folder, made if it is not there."""
    path = Path(os.environ.get("OCTAVO_CACHE_DIR") or "~/.cache/octavo").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache folder {path} cannot be made: {error}; set OCTAVO_CACHE_DIR to one that can"
        ) from error
    return path


def cpu_isa() -> CpuIsa:
    chosen = os.environ.get("OCTAVO_CPU_ISA") or "native"
    for isa in get_args(CpuIsa):
        if chosen == isa:
            return isa  # type: ignore[no-any-return]
    raise ConfigError(f"OCTAVO_CPU_ISA is {chosen!r}, allowed are native, avx2 and generic; unset it for native")


def sanitizes_kernels() -> bool:
    return bool(os.environ.get("OCTAVO_SANITIZE"))


def is_debug() -> bool:
    return bool(os.environ.get("OCTAVO_DEBUG"))


def openai_api_key() -> str | None:
    return os.environ.get("OPENAI_API_KEY") or None


def cxx() -> str | None:
    return os.environ.get("CXX") or None
