"""The backends, best first, and which of them can run here.

Importing this file imports no backend: only the backend that needs torch or a compiler touches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from octavo.config import BackendConfig
from octavo.errors import BackendUnavailableError, ConfigError
from octavo.kernels.device import Device, KernelCompiler
from octavo.kernels.tensor import DType, HostTensor

Convert = Callable[[HostTensor, DType], HostTensor]
#: from the options and the worker's rank; each rank has its own device
MakeDevice = Callable[[BackendConfig, int], Device]


def _triton(config: BackendConfig, rank: int = 0) -> Device:
    from octavo.kernels.cuda.device import CudaDevice

    return CudaDevice(
        config.attention_backend,
        config.device_index + rank,
        traces_ops=config.trace_ops,
        captures=not config.enforce_eager,
    )


def _cpu(config: BackendConfig, rank: int = 0) -> Device:
    from octavo.kernels.cpu.device import CpuDevice

    return CpuDevice(config.num_threads, config.activation_dtype, traces_ops=config.trace_ops)


def _reference(config: BackendConfig, rank: int = 0) -> Device:
    from octavo.kernels.reference.device import ReferenceDevice

    return ReferenceDevice(traces_ops=config.trace_ops)


#: backends that compute in the host's memory, best first
HOST_BACKENDS: dict[str, MakeDevice] = {"cpu": _cpu, "reference": _reference}
BACKENDS: dict[str, MakeDevice] = {"triton": _triton, **HOST_BACKENDS}


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen device, and the reason, for the start-up card."""

    device: Device
    why: str


def select(config: BackendConfig, rank: int = 0) -> Selection:
    """The requested device, or for "auto" the first that can run."""
    selection = _first_that_runs(config, rank) if config.backend == "auto" else _asked(config, rank)
    if selection.device.name == "triton":
        return selection
    for option, default in (("attention_backend", "auto"), ("device", "auto")):
        if (asked := getattr(config, option)) != default:
            raise ConfigError(
                f"{option} is {asked!r}, a choice for GPUs, but the backend is "
                f"{selection.device.name!r} ({selection.why}): leave {option} at {default!r}"
            )
    return selection


def compile_ahead(config: BackendConfig, rank: int, settings: object) -> KernelCompiler | None:
    """Start compiling the kernels of the device that will most likely be chosen. Call it before `select`, which takes
    longer."""
    name = next(iter(BACKENDS)) if config.backend == "auto" else config.backend
    return BACKENDS[name](config, rank).compile_ahead(settings)


def _asked(config: BackendConfig, rank: int) -> Selection:
    device = BACKENDS[config.backend](config, rank)
    if (reason := device.why_not()) is not None:
        raise BackendUnavailableError(f"backend {config.backend!r} cannot run here: {reason}")
    return Selection(device, f"{config.backend}, as asked")


def _first_that_runs(config: BackendConfig, rank: int) -> Selection:
    reasons: list[str] = []
    for name, make in BACKENDS.items():
        device = make(config, rank)
        if (reason := device.why_not()) is None:
            return Selection(device, "; ".join([f"{name}, the fastest that runs here", *reasons]))
        reasons.append(f"{name} cannot: {reason}")
    raise BackendUnavailableError("no backend can run here; " + "; ".join(reasons))


def converter(config: BackendConfig) -> Convert:
    """Converts a weight's dtype at load: in C++ if the cpu backend runs, else in numpy. Chosen when the first weight
    needs it, because the check whether C++ runs builds it."""

    @cache
    def chosen() -> Convert:
        if _cpu(config).why_not() is None:
            from octavo.kernels.cpu.weights import convert

            return convert
        from octavo.kernels.reference.dequantize import convert as reference_convert

        return reference_convert

    return lambda tensor, dtype: chosen()(tensor, dtype)


def describe() -> list[tuple[str, str | None]]:
    """For `octavo doctor`: every backend, best first, with the reason why it cannot run here, or None."""
    return [(name, make(BackendConfig(), 0).why_not()) for name, make in BACKENDS.items()]
