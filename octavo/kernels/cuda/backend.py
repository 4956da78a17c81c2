"""TritonBackend: kernels for NVIDIA GPUs from Ampere on. Importing this file imports neither torch nor triton."""

from __future__ import annotations

import importlib.util
import threading
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from octavo.config import AttentionBackendOption
from octavo.errors import ConfigError, OutOfMemoryError
from octavo.kernels.cuda.driver import GPU, first_gpu
from octavo.kernels.ops import KVDType, KVLayout, Model, StepLimits

if TYPE_CHECKING:
    from octavo.kernels.cuda.model import TritonModel

OLDEST_CAPABILITY = (8, 0)  # bfloat16 matrix units


class TritonBackend:
    """A backend with memory of its own: weights and KV blocks are loaded there, and steps start there."""

    name = "triton"
    device = "cuda:0"

    def __init__(self, attention: AttentionBackendOption = "triton") -> None:
        self._attention = attention

    @cached_property
    def gpu(self) -> GPU | None:
        return first_gpu()

    def why_not(self) -> str | None:
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

    def load(self, model: Model, kv: KVLayout, limits: StepLimits, dtype: KVDType) -> TritonModel:
        """Upload the weights and allocate all that steps within the limits need, but for the KV pool.
        Raises OutOfMemoryError."""
        import torch

        from octavo.kernels.cuda.model import TritonModel
        from octavo.kernels.triton.attention.kv_pool import BOX_TOKENS

        if kv.block_size < BOX_TOKENS:
            raise ConfigError(
                f"block_size is {kv.block_size}, too small for a GPU, which reads {BOX_TOKENS} tokens at once: set 16, "
                "32, 64 or 128"
            )
        assert self.gpu is not None, "a backend that cannot run loads nothing"
        threading.Thread(target=_prepare_triton, daemon=True).start()
        device = torch.device(self.device)
        try:
            return TritonModel(model, kv, limits, dtype, device, self.gpu, self._attention)
        except torch.cuda.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info(device)
            raise OutOfMemoryError(
                f"{self.gpu.name} has no room for the weights in {dtype} and the activations of "
                f"{limits.max_num_tokens} tokens: {free:,} of {total:,} bytes were left; lower max_num_batched_tokens "
                f"or max_num_seqs (now {limits.max_num_seqs}), or take a smaller model"
            ) from error


def _prepare_triton() -> None:
    """What Triton does once a process, half a second, when it first looks for a kernel: read all of itself for its
    cache's keys, and find the driver. Beside the weights nobody waits for it."""
    with suppress(Exception):  # whoever launches a kernel will say what is wrong
        from triton.runtime import driver
        from triton.runtime.cache import triton_key

        triton_key()
        assert driver.active


def _torch_has_cuda() -> bool:
    import torch

    return torch.version.cuda is not None
