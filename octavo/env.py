"""All environment variables that Octavo reads.

    OCTAVO_CACHE_DIR   where built kernels, joined model files and derived tables are kept; default
                       ~/.cache/octavo, or octavo-UID in the temporary folder where that cannot be written
    OCTAVO_CPU_ISA     native (default): this CPU; avx2: any CPU with AVX2; generic: any CPU of this architecture
    OCTAVO_SANITIZE    set: kernels are built with AddressSanitizer and UBSan, for tests (`make sanitize`)
    OCTAVO_DEBUG       set: the command line shows the traceback of an error, as --debug does
    OCTAVO_API_KEY     the key that requests to `octavo serve` must send, unless --api-key or --api-key-file gives
                       others; VLLM_API_KEY works too, as in vLLM
    OCTAVO_KV_SECRET   the secret that prefill and decode servers prove to each other, 16 characters or more
    OPENAI_API_KEY     the key that `octavo chat`, `complete` and `bench serve` send, unless --api-key gives another
    OCTAVO_COLLECTIVE_TIMEOUT  seconds that the ranks of a model wait for each other, and the engine for a step of
                       theirs, before it ends; default 240. Keep it above the longest step
    OCTAVO_RANKS_PER_GPU  how many ranks share a GPU; they exchange results through the host, which is slow: for
                       tests; default 1
    OCTAVO_ALLOW_LONG_MAX_MODEL_LEN  1: max_model_len may exceed the model's own limit
    RAY_ADDRESS        the Ray cluster that distributed_executor_backend='ray' joins, HOST:PORT or auto; default: the
                       one on this machine
    CUDA_VISIBLE_DEVICES  the GPUs that may be used; each of several engines is shown its own
    CXX                the C++ compiler; default: the first of g++, clang++ and c++ on the PATH

Read at each call, not at import, so that a test or a notebook can set them.
"""

from __future__ import annotations

import math
import os
import stat
import tempfile
from pathlib import Path
from typing import Literal, get_args

from octavo.errors import ConfigError

CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
CpuIsa = Literal["native", "avx2", "generic"]
_MOST = 86400.0
_OF_RANKS = (
    *("OCTAVO_CPU_ISA", "OCTAVO_COLLECTIVE_TIMEOUT", "OCTAVO_RANKS_PER_GPU"),
    *("OCTAVO_ALLOW_LONG_MAX_MODEL_LEN", "OCTAVO_DEBUG"),
)


def preferred_cache_dir() -> Path:
    """The configured cache folder; it may not exist or not be writable."""
    try:
        return Path(os.environ.get("OCTAVO_CACHE_DIR") or "~/.cache/octavo").expanduser()
    except RuntimeError:  # no home directory
        return temporary_cache_dir()


def cache_dir() -> Path:
    """The cache folder, created if needed. Falls back to the temporary one if the default is not writable, but never
    from one that was set."""
    path, is_asked = preferred_cache_dir(), bool(os.environ.get("OCTAVO_CACHE_DIR"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_asked:
            raise ConfigError(
                f"the cache folder {path} cannot be created: {error}; set OCTAVO_CACHE_DIR to one that can"
            ) from error
        return temporary_cache_dir()
    return path if is_asked or os.access(path, os.W_OK | os.X_OK) else temporary_cache_dir()


def temporary_cache_dir() -> Path:
    """A private folder in the system's temporary folder, created if needed. Its files are loaded as code, so a folder
    that others can write to is refused."""
    try:
        path = Path(tempfile.gettempdir()) / f"octavo-{os.getuid()}"
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"no temporary folder can be created: {error}; set OCTAVO_CACHE_DIR to a folder for its files"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ConfigError(
            f"{path} is not a folder that only this user can write to; remove it, or set OCTAVO_CACHE_DIR to another"
        )
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


def allows_long_max_model_len() -> bool:
    return os.environ.get("OCTAVO_ALLOW_LONG_MAX_MODEL_LEN", "0").lower() in ("1", "true")


def of_ranks() -> dict[str, str]:
    """The variables that a model's ranks on other machines take over from the engine."""
    return {name: os.environ[name] for name in _OF_RANKS if name in os.environ}


def collective_timeout() -> float:
    return _number("OCTAVO_COLLECTIVE_TIMEOUT", 240.0, 1.0)


def ranks_per_gpu() -> int:
    return int(_number("OCTAVO_RANKS_PER_GPU", 1, 1))


def _number(name: str, default: float, least: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= _MOST:
        raise ConfigError(
            f"{name} is {text!r}, allowed is a number from {least:g} to {_MOST:g}; unset it for {default:g}"
        )
    return number


def openai_api_key() -> str | None:
    return os.environ.get("OPENAI_API_KEY") or None


def server_api_key() -> str | None:
    """An empty variable is refused: a missing secret must not leave a server open."""
    for name in ("OCTAVO_API_KEY", "VLLM_API_KEY"):
        if name in os.environ:
            key = os.environ[name].strip()
            if not key:
                raise ConfigError(f"{name} is set and empty, allowed is a key: set it to one, or unset it to need none")
            return key
    return None


def kv_secret() -> str:
    """Servers that hand each other KV blocks must all have it."""
    secret = os.environ.get("OCTAVO_KV_SECRET", "").strip()
    if len(secret) < 16:
        raise ConfigError(
            f"OCTAVO_KV_SECRET has {len(secret)} characters, allowed are 16 or more: set it to the same text on every "
            "prefill and decode server, such as the output of `openssl rand -hex 16`"
        )
    return secret


def cuda_visible_devices() -> list[str]:
    """The names of the GPUs that may be used; empty if the variable does not limit them."""
    return [name.strip() for name in os.environ.get(CUDA_VISIBLE_DEVICES, "").split(",") if name.strip()]


def cxx() -> str | None:
    return os.environ.get("CXX") or None
