"""The backends, best first, and which of them can run here.

Importing this file imports no backend: only the backend that needs torch or a compiler touches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from octavo.config import BackendConfig
from octavo.distributed.world import LocalRanks, World
from octavo.env import ranks_per_gpu
from octavo.errors import BackendUnavailableError, ConfigError
from octavo.kernels.device import Device, KernelCompiler
from octavo.kernels.tensor import DType, HostTensor

Convert = Callable[[HostTensor, DType], HostTensor]
#: from the options and the worker's place; each rank has its own device
MakeDevice = Callable[[BackendConfig, World], Device]
ONE_RANK = World()


def _triton(config: BackendConfig, world: World = ONE_RANK) -> Device:
    from octavo.kernels.attention import attention_choice
    from octavo.kernels.cuda.device import CudaDevice

    sharing = ranks_per_gpu() if world.size > 1 else 1
    index = config.device_index + world.local.rank // sharing
    captures = not config.enforce_eager and (sharing == 1 or world.tensor_parallel_size == 1)
    return CudaDevice(
        attention_choice(config), index, sharing, traces_ops=_traces(config, world), captures=captures,
        peer_memory=not config.disable_custom_all_reduce,
    )  # fmt: skip


def _cpu(config: BackendConfig, world: World = ONE_RANK) -> Device:
    from octavo.kernels.cpu.device import CpuDevice

    return CpuDevice(config.num_threads, config.activation_dtype, world.local.size, traces_ops=_traces(config, world))


def _reference(config: BackendConfig, world: World = ONE_RANK) -> Device:
    from octavo.kernels.reference.device import ReferenceDevice

    return ReferenceDevice(world.local.size, traces_ops=_traces(config, world))


def _traces(config: BackendConfig, world: World) -> bool:
    """One rank's ops are as good as another's."""
    return config.trace_ops and world.rank == 0


#: backends that compute in the host's memory, best first
HOST_BACKENDS: dict[str, MakeDevice] = {"cpu": _cpu, "reference": _reference}
BACKENDS: dict[str, MakeDevice] = {"triton": _triton, **HOST_BACKENDS}


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen device, and the reason, for the start-up card."""

    device: Device
    why: str


def select(config: BackendConfig, world: World = ONE_RANK) -> Selection:
    """The requested device, or for "auto" the first that can run. All ranks get the same backend."""
    selection = _first_that_runs(config) if config.backend == "auto" else _asked(config)
    if world.size > 1:
        selection = replace(selection, device=_of_rank(config, world, selection.device.name))
    if config.deterministic and selection.device.name == "reference":
        raise ConfigError(
            f"deterministic is True, but the backend is 'reference' ({selection.why}), whose products are torch's and "
            "depend on the number of rows: set backend to 'cpu' or 'triton', or deterministic=False"
        )
    if selection.device.name == "triton":
        return selection
    for option, default in (("attention_backend", "auto"), ("device", "auto")):
        if (asked := getattr(config, option)) != default:
            raise ConfigError(
                f"{option} is {asked!r}, a choice for GPUs, but the backend is "
                f"{selection.device.name!r} ({selection.why}): leave {option} at {default!r}"
            )
    return selection


def _of_rank(config: BackendConfig, world: World, name: str) -> Device:
    for rank in range(world.local.size):
        device = BACKENDS[name](config, replace(world, here=LocalRanks(rank=rank, size=world.local.size)))
        if (reason := device.why_not()) is not None:
            raise ConfigError(
                f"{world.sizes}, but there is no device for rank {rank}: {reason}; allowed here are up to {rank} ranks"
            )
    return BACKENDS[name](config, world)


def compile_ahead(config: BackendConfig, world: World, settings: object) -> KernelCompiler | None:
    """Start compiling the kernels of the device that will most likely be chosen. Call it before `select`, which takes
    longer."""
    name = next(iter(BACKENDS)) if config.backend == "auto" else config.backend
    return BACKENDS[name](config, world).compile_ahead(settings)


def _asked(config: BackendConfig) -> Selection:
    device = BACKENDS[config.backend](config, ONE_RANK)
    if (reason := device.why_not()) is not None:
        raise BackendUnavailableError(f"backend {config.backend!r} cannot run here: {reason}")
    return Selection(device, f"{config.backend}, as asked")


def _first_that_runs(config: BackendConfig) -> Selection:
    reasons: list[str] = []
    for name, make in BACKENDS.items():
        device = make(config, ONE_RANK)
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
    return [(name, make(BackendConfig(), ONE_RANK).why_not()) for name, make in BACKENDS.items()]
