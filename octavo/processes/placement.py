"""Where each of several engines computes: its GPUs, or its part of the host's cores. Ray chooses by itself.

CUDA_VISIBLE_DEVICES=4,5,6,7     engine 0    CUDA_VISIBLE_DEVICES=4
                                 engine 1    CUDA_VISIBLE_DEVICES=5     two each with tensor_parallel_size=2
8 cores                          engine 0    4 threads, anywhere
                                 engine 1    4 threads, anywhere
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count, takewhile

from octavo import env
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.kernels.cuda.driver import find_gpu
from octavo.observe.machine import num_cores


@dataclass(frozen=True, slots=True)
class EnginePlace:
    """One engine's options, and the environment variables of its process that differ from its parent's."""

    config: EngineConfig
    environment: Mapping[str, str] = field(default_factory=dict)


def engine_places(config: EngineConfig, num_prefill: int = 0) -> list[EnginePlace]:
    """A place for each engine, and for those that only compute prompts. Raises ConfigError if there are too few
    GPUs."""
    backend = config.backend
    num_engines = backend.data_parallel_size + num_prefill
    num_ranks = backend.tensor_parallel_size * backend.pipeline_parallel_size
    on_ray = backend.distributed_executor_backend == "ray"
    if on_ray and num_prefill:
        raise ConfigError(
            f"prefill_engines is {num_prefill}, and distributed_executor_backend is 'ray': engines pass blocks on "
            "within one machine; leave prefill_engines at 0, or the backend at 'mp'"
        )
    if num_engines == 1 or on_ray:  # Ray has places for all ranks
        return [EnginePlace(config)] * num_engines
    if backend.num_threads is None:
        backend = replace(backend, num_threads=max(1, num_cores() // (num_engines * num_ranks)))
    num_gpus = _num_gpus() if backend.backend in ("auto", "triton") else 0
    if not num_gpus:
        return [EnginePlace(replace(config, backend=backend))] * num_engines
    first = backend.device_index
    own_gpus = -(-num_ranks // env.ranks_per_gpu())
    if first + num_engines * own_gpus > num_gpus:
        raise ConfigError(_too_few(backend.data_parallel_size, num_prefill, own_gpus, max(num_gpus - first, 0), first))
    own = replace(config, backend=replace(backend, device="auto" if backend.device == "auto" else "cuda:0"))
    names = env.cuda_visible_devices() or [str(index) for index in range(num_gpus)]
    starts = range(first, first + num_engines * own_gpus, own_gpus)
    return [EnginePlace(own, {env.CUDA_VISIBLE_DEVICES: ",".join(names[at : at + own_gpus])}) for at in starts]


def _too_few(num_engines: int, num_prefill: int, own_gpus: int, left: int, first: int) -> str:
    beside = f" and prefill_engines {num_prefill}" if num_prefill else ""
    needs = "a GPU" if own_gpus == 1 else f"{own_gpus} GPUs"
    cure = "" if left >= own_gpus else ", and tensor_parallel_size times pipeline_parallel_size must be smaller"
    return (
        f"data_parallel_size is {num_engines}{beside}, and each engine needs {needs}, but there are {left} from "
        f"'cuda:{first}' on: allowed here are up to {left // own_gpus} engines of this size{cure}"
    )


def _num_gpus() -> int:
    """Those that this process sees."""
    return sum(1 for _ in takewhile(lambda index: find_gpu(index) is not None, count()))
