"""Which backends there are, best first, and which of them can run here.

Importing this file imports no backend: torch, or a compiler, is touched only by the backend that needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from octavo.config import BackendConfig
from octavo.errors import BackendUnavailableError, ConfigError
from octavo.kernels.ops import Backend
from octavo.kernels.tensor import DType, HostTensor

Convert = Callable[[HostTensor, DType], HostTensor]

if TYPE_CHECKING:
    from octavo.kernels.cuda.backend import TritonBackend


def _triton(config: BackendConfig) -> TritonBackend:
    from octavo.kernels.cuda.backend import TritonBackend

    return TritonBackend(config.attention_backend)


def _cpu(config: BackendConfig) -> Backend:
    from octavo.kernels.cpu.backend import CpuBackend

    return CpuBackend(config.num_threads, config.activation_dtype)


def _reference(config: BackendConfig) -> Backend:
    from octavo.kernels.reference import ReferenceBackend

    return ReferenceBackend()


#: those that compute in the host's memory, best first
HOST_BACKENDS: dict[str, Callable[[BackendConfig], Backend]] = {"cpu": _cpu, "reference": _reference}
BACKENDS: dict[str, Callable[[BackendConfig], Backend | TritonBackend]] = {"triton": _triton, **HOST_BACKENDS}


@dataclass(frozen=True, slots=True)
class Selection:
    """The backend chosen, and why it, in words for the start-up card."""

    backend: Backend | TritonBackend
    why: str


def select(config: BackendConfig) -> Selection:
    """The backend asked for, or for "auto" the first that can run."""
    selection = _first_that_runs(config) if config.backend == "auto" else _asked(config)
    if config.attention_backend != "triton" and selection.backend.name != "triton":
        raise ConfigError(
            f"attention_backend is {config.attention_backend!r}, a choice for GPUs, but the backend is "
            f"{selection.backend.name!r} ({selection.why}): leave attention_backend at 'triton'"
        )
    return selection


def _asked(config: BackendConfig) -> Selection:
    if config.backend not in BACKENDS:
        raise ConfigError(f"backend is {config.backend!r}, allowed are 'auto', {', '.join(map(repr, BACKENDS))}")
    backend = BACKENDS[config.backend](config)
    if (reason := backend.why_not()) is not None:
        raise BackendUnavailableError(f"backend {config.backend!r} cannot run here: {reason}")
    return Selection(backend, f"{config.backend}, as asked")


def _first_that_runs(config: BackendConfig) -> Selection:
    reasons: list[str] = []
    for name, make in BACKENDS.items():
        backend = make(config)
        if (reason := backend.why_not()) is None:
            return Selection(backend, "; ".join([f"{name}, the fastest that runs here", *reasons]))
        reasons.append(f"{name} cannot: {reason}")
    raise BackendUnavailableError("no backend can run here; " + "; ".join(reasons))


def converter(config: BackendConfig) -> Convert:
    """What changes a weight's dtype at load: C++ where the cpu backend runs, else numpy. Chosen when the first weight
    needs it, since to find out whether C++ runs is to build it."""

    @cache
    def chosen() -> Convert:
        if _cpu(config).why_not() is None:
            from octavo.kernels.cpu.convert import convert

            return convert
        from octavo.kernels.reference.dequantize import convert as reference_convert

        return reference_convert

    return lambda tensor, dtype: chosen()(tensor, dtype)


def describe() -> list[tuple[str, str | None]]:
    """Every backend, best first, with the reason why it cannot run here, or None: for `octavo doctor`."""
    return [(name, make(BackendConfig()).why_not()) for name, make in BACKENDS.items()]
