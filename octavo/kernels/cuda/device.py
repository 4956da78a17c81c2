"""CudaDevice: an NVIDIA GPU, from Ampere on. Importing this file imports neither torch nor triton."""

from __future__ import annotations

import importlib.util
import threading
from contextlib import suppress
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from octavo.config import BackendConfig, DTypeOption, KVCacheDType
from octavo.errors import ConfigError, OutOfMemoryError, UnsupportedModelError
from octavo.kernels.attention import AttentionChoice, attention_choice
from octavo.kernels.cuda.compile_ahead import KernelCompiler
from octavo.kernels.cuda.driver import GPU, find_gpu
from octavo.kernels.cuda.ledger import device_ledger
from octavo.kernels.cuda.sizes import move_buffer
from octavo.kernels.cuda_cpp.compile import find_nvcc
from octavo.kernels.device import DTypes, StepLimits, StepSizes
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.ledger import Ledger, device_budget, size
from octavo.kernels.model import Model
from octavo.kernels.program.model_recording import ModelRecording
from octavo.kernels.program.recorder import printer

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives
    from octavo.kernels.cuda.model import TritonModel

OLDEST_CAPABILITY = (8, 0)  # bfloat16 matrix units
_LARGE_GPU_BYTES = 70 << 30
_LARGE, _SMALL = StepSizes(16384, 1024), StepSizes(8192, 256)


class CudaDevice:
    """Implements `octavo.kernels.device.Device`. index: among the GPUs in CUDA_VISIBLE_DEVICES. captures: steps as CUDA
    graphs. peer_memory: ranks exchange small messages over it. described: a GPU to plan for, in place of one here."""

    name = "triton"
    is_asynchronous = draws_weights = sizes_cache_last = True

    def __init__(
        self,
        attention: AttentionChoice = "auto",
        index: int = 0,
        num_sharing: int = 1,
        *,
        traces_ops: bool = False,
        captures: bool = True,
        peer_memory: bool = True,
        described: GPU | None = None,
    ) -> None:
        self._attention, self._captures, self._described = attention, captures and not traces_ops, described
        self.num_sharing, self._peer_memory = num_sharing, peer_memory
        self._see = printer(lambda x: float(x.float().norm())) if traces_ops else None
        self.index = index
        self._attention_names: list[str] = []
        self._experts_by: str | None = None

    @classmethod
    def for_plan(cls, config: BackendConfig, gpu: GPU) -> CudaDevice:
        """A device that plans memory, and does nothing else."""
        options = {"traces_ops": config.trace_ops, "captures": not config.enforce_eager}
        return cls(attention_choice(config), **options, described=gpu)

    @property
    def device(self) -> str:
        """torch's name for the GPU."""
        return f"cuda:{self.index}"

    @property
    def place(self) -> str:
        return self.device

    @property
    def collective_device(self) -> str | None:
        """NCCL refuses ranks that share a GPU."""
        return self.device if self.num_sharing == 1 else None

    @property
    def kind(self) -> str:
        return f"{self._found.name}, {size(self._found.num_bytes)}"

    @cached_property
    def gpu(self) -> GPU | None:
        return self._described or find_gpu(self.index)

    def why_not(self) -> str | None:
        if self.gpu is None and self.index:
            shown = " and ".join(f"'cuda:{index}'" for index in range(self.index) if find_gpu(index))
            if shown:
                return f"device is {self.device!r}, and this process sees {shown} only: set device to one of these"
        if self.gpu is None:
            return "this machine has no NVIDIA GPU, or its driver is not installed"
        if self.gpu.capability < OLDEST_CAPABILITY:
            have, need = (".".join(map(str, pair)) for pair in (self.gpu.capability, OLDEST_CAPABILITY))
            return f"{self.gpu.name} has compute capability {have}; {need} or more is needed"
        missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
        if missing:
            return f"{' and '.join(missing)} not installed: pip install 'octavo[gpu]'"
        if not _torch_has_cuda():
            return "torch is built without CUDA: pip install --force-reinstall -i https://pypi.org/simple torch"
        return None

    def default_sizes(self) -> StepSizes:
        return _LARGE if self._found.num_bytes >= _LARGE_GPU_BYTES else _SMALL

    def dtypes(self, asked: DTypeOption, kv_asked: KVCacheDType, stored: str) -> DTypes:
        """Compute in the requested type, else in the file's if it has 16 bits, else in bfloat16. KV blocks have the
        same type, because attention multiplies the two, or codes of 8 bits."""
        dtype = asked if asked != "auto" else "float16" if stored == "F16" else "bfloat16"
        if kv_asked in ("fp8", "int8"):
            return DTypes(dtype, kv_asked)
        if kv_asked not in ("auto", dtype):
            raise ConfigError(
                f"kv_cache_dtype is {kv_asked} and the model computes in {dtype}; on a GPU they must be the "
                f"same, or KV blocks have 8 bits: set dtype={kv_asked!r}, or kv_cache_dtype to 'auto', 'fp8' or 'int8'"
            )
        return DTypes(dtype, dtype)

    def label(self, dtype: KVDType) -> str:
        """Complete once a model is loaded."""
        text = f"{self._found.name}, {self._found.num_bytes / (1 << 30):.1f} GiB, computing in {dtype}"
        if self._attention_names:
            text += f"; attention by {', '.join(self._attention_names)}"
            if self._attention in ("auto", "cuda") and find_nvcc() is None:
                text += " (without nvcc; pip install 'octavo[cuda]' adds the CUDA C++ kernels)"
        return text if self._experts_by is None else f"{text}; experts by {self._experts_by}"

    def compile_ahead(self, settings: object) -> KernelCompiler | None:
        return KernelCompiler.for_first_start(self.gpu, settings)

    def ledger(self, model: ModelRecording, kv: KVLayout, limits: StepLimits, dtype: KVDType) -> Ledger:
        given = (model, kv, limits, dtype, self._found, self._attention)
        return device_ledger(*given, traced=self._see is not None, captures=self._captures)

    def move_bytes(self, kv: KVLayout) -> int:
        return prod(move_buffer(kv.block_bytes))

    def planned_bytes(self, ledger: Ledger, utilization: float, memory: int | None) -> int:
        return device_budget(memory or self._found.num_bytes, ledger.early, ledger.late, utilization)

    def free_bytes(self, ledger: Ledger, utilization: float) -> int:
        """The part of that share of the GPU's whole memory that neither this process nor others use."""
        import torch

        free, total = torch.cuda.mem_get_info(self.device)
        return device_budget(total, total - free, ledger.late, utilization)

    def used_bytes(self) -> int | None:
        import torch

        if not torch.cuda.is_available():  # Triton's interpreter stands for the GPU
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free

    def load(
        self, model: Model, kv: KVLayout, limits: StepLimits, dtype: KVDType, ranks: Collectives | None = None
    ) -> TritonModel:
        import torch

        from octavo.kernels.cuda.model import TritonModel
        from octavo.kernels.triton.attention.memory import BOX_TOKENS

        for dim in {group.head_dim for group in kv.groups}:
            if dim * kv.element_bytes % 16:
                raise UnsupportedModelError(
                    f"heads of {dim} elements in {kv.dtype} take {dim * kv.element_bytes} bytes; on a GPU they must "
                    "take a multiple of 16: set dtype='float32' and kv_cache_dtype='auto', or backend='cpu'"
                )
        if kv.block_size < BOX_TOKENS:
            raise ConfigError(
                f"block_size is {kv.block_size}, too small for a GPU, which reads {BOX_TOKENS} tokens at once: set 16, "
                "32, 64 or 128"
            )
        gpu = self._found
        threading.Thread(target=_prepare_triton, daemon=True).start()
        device = torch.device(self.device)
        if device.index:
            torch.cuda.set_device(device)
        try:
            given = (model, kv, limits, dtype, device, gpu, self._attention, self._see, ranks)
            loaded = TritonModel(*given, peer_memory=self._peer_memory)
        except torch.cuda.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info(device)
            raise OutOfMemoryError(f"{gpu.name} had {size(free)} of {size(total)} left when memory ran out") from error
        self._attention_names, self._experts_by = loaded.attention_names, loaded.experts_by
        return loaded

    @property
    def _found(self) -> GPU:
        assert self.gpu is not None, "only a usable device is asked"
        return self.gpu


def _prepare_triton() -> None:
    """Do Triton's first-use work, half a second per process, while the weights load: hash its sources for cache keys,
    and find the driver."""
    with suppress(Exception):  # the first launch will report the error
        from triton.runtime import driver
        from triton.runtime.cache import triton_key

        triton_key()
        assert driver.active


def _torch_has_cuda() -> bool:
    import torch

    return torch.version.cuda is not None
