"""What an engine on a GPU does differently at its start: its defaults, its types, its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.config import CacheConfig, DTypeOption, EngineConfig
from octavo.errors import ConfigError, UnsupportedModelError
from octavo.kernels.cuda.backend import TritonBackend
from octavo.kernels.cuda.compile_ahead import KernelCompiler
from octavo.kernels.ops import KVDType, KVLayout, Model, StepLimits
from octavo.worker.memory import KVBudget, plan_kv_cache

if TYPE_CHECKING:
    from octavo.kernels.cuda.model import TritonModel

LARGE_GPU_BYTES = 70 << 30


def compiler_for_first_start(config: EngineConfig) -> KernelCompiler | None:
    """Begin what a server's first start on a machine needs most time for, before anything else."""
    if config.backend.backend not in ("auto", TritonBackend.name):
        return None
    return KernelCompiler.for_first_start(config)


def default_token_budget(backend: TritonBackend) -> int:
    return 16384 if _is_large(backend) else 8192


def default_max_num_seqs(backend: TritonBackend) -> int:
    return 1024 if _is_large(backend) else 256


def compute_dtype(asked: DTypeOption, file_dtype: str) -> KVDType:
    """The type asked for, else the file's if it has 16 bits, else bfloat16."""
    if asked != "auto":
        return asked
    return "float16" if file_dtype == "F16" else "bfloat16"


def kv_dtype(config: CacheConfig, dtype: KVDType) -> KVDType:
    """The type that the model computes in: attention multiplies the two."""
    if config.kv_cache_dtype not in ("auto", dtype):
        raise ConfigError(
            f"kv_cache_dtype is {config.kv_cache_dtype} and the model computes in {dtype}; on a GPU they must be the "
            f"same: set dtype={config.kv_cache_dtype!r}, or leave kv_cache_dtype at 'auto'"
        )
    return dtype


def label(backend: TritonBackend, dtype: KVDType) -> str:
    """For the start-up card."""
    assert backend.gpu is not None, "a backend that runs has a GPU"
    return f"{backend.gpu.name}, {backend.gpu.num_bytes / (1 << 30):.1f} GiB, computing in {dtype}"


def load_on_device(
    backend: TritonBackend, model: Model, layout: KVLayout, limits: StepLimits, dtype: KVDType
) -> TritonModel:
    """Everything but the KV blocks. Raises OutOfMemoryError."""
    if layout.head_dim * layout.element_bytes % 16:
        raise UnsupportedModelError(
            f"heads of {layout.head_dim} elements in {dtype} take {layout.head_dim * layout.element_bytes} bytes; on a "
            "GPU they must take a multiple of 16: set dtype='float32', or backend='cpu'"
        )
    return backend.load(model, layout, limits, dtype)


def plan_device_cache(
    config: CacheConfig, loaded: TritonModel, layout: KVLayout, num_groups: int, limits: StepLimits, is_len_asked: bool
) -> KVBudget:
    """As many blocks as gpu_memory_utilization leaves room for, measured now that everything else is there."""
    return plan_kv_cache(
        config,
        layout,
        num_groups,
        limits.max_num_seqs,
        limits.max_model_len,
        is_len_asked,
        device_bytes=loaded.bytes_for_blocks(config.gpu_memory_utilization),
    )


def _is_large(backend: TritonBackend) -> bool:
    assert backend.gpu is not None, "a backend that cannot run is not asked"
    return backend.gpu.num_bytes >= LARGE_GPU_BYTES
