"""Which backends there are, best first, and which of them can run here.

Importing this file imports no backend: torch, or a compiler, is touched only by the backend that needs it.
"""

from __future__ import annotations

from collections.abc import Callable

from octavo.config import BackendOption
from octavo.errors import BackendUnavailableError, ConfigError
from octavo.kernels.ops import Backend


def _cpu(num_threads: int | None) -> Backend:
    from octavo.kernels.cpu.backend import CpuBackend

    return CpuBackend(num_threads)


def _reference(num_threads: int | None) -> Backend:
    from octavo.kernels.reference import ReferenceBackend

    return ReferenceBackend()


BACKENDS: dict[str, Callable[[int | None], Backend]] = {"cpu": _cpu, "reference": _reference}


def select(option: BackendOption, num_threads: int | None = None) -> Backend:
    """The backend asked for, or for "auto" the first that can run. `num_threads` is the cpu backend's;
    None takes every core this process may use."""
    if option != "auto":
        if option not in BACKENDS:
            raise ConfigError(f"backend is {option!r}, allowed are 'auto' and {', '.join(map(repr, BACKENDS))}")
        backend = BACKENDS[option](num_threads)
        if (reason := backend.why_not()) is not None:
            raise BackendUnavailableError(f"backend {option!r} cannot run here: {reason}")
        return backend
    reasons = []
    for name, make in BACKENDS.items():
        backend = make(num_threads)
        if (reason := backend.why_not()) is None:
            return backend
        reasons.append(f"{name}: {reason}")
    raise BackendUnavailableError("no backend can run here.\n" + "\n".join(reasons))


def describe() -> list[tuple[str, str | None]]:
    """Every backend, best first, with the reason why it cannot run here, or None. For the start-up card (the
    reasons before the chosen one are why it was not better) and `octavo doctor`."""
    return [(name, make(None).why_not()) for name, make in BACKENDS.items()]
