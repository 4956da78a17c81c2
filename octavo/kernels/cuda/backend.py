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
    import torch

    from octavo.kernels.cuda.model import TritonModel
    from octavo.kernels.cuda.program import HopperKernels
    from octavo.kernels.external.flash_attention import FlashAttention

OLDEST_CAPABILITY = (8, 0)  # bfloat16 matrix units
HOPPER = 9
CHAINING_CAPABILITY = (9, 0)  # programmatic dependent launch


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
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed; run pip install triton"
        if not _torch_has_cuda():
            return "torch is missing or built without CUDA; install the CUDA build of torch"
        return None

    def load(self, model: Model, kv: KVLayout, limits: StepLimits, dtype: KVDType) -> TritonModel:
        """Upload the weights and allocate all that steps within the limits need, but for the KV pool.
        Raises OutOfMemoryError."""
        import torch

        from octavo.kernels.cuda.model import TritonModel
        from octavo.kernels.triton.attention.kv_pool import BOX_TOKENS, TORCH_DTYPE

        if kv.block_size < BOX_TOKENS:
            raise ConfigError(
                f"block_size is {kv.block_size}, too small for a GPU, which reads {BOX_TOKENS} tokens at once: set 16, "
                "32, 64 or 128"
            )
        assert self.gpu is not None, "a backend that cannot run loads nothing"
        threading.Thread(target=_prepare_triton, daemon=True).start()
        device = torch.device(self.device)
        chained = self.gpu.capability >= CHAINING_CAPABILITY
        flash, hopper = self._flash_attention(), self._hopper(device)
        try:
            return TritonModel(
                model, kv, limits, TORCH_DTYPE[dtype], device, self.gpu.num_multiprocessors, chained, flash, hopper
            )
        except torch.cuda.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info(device)
            raise OutOfMemoryError(
                f"{self.gpu.name} has no room for the weights in {dtype} and the activations of "
                f"{limits.max_num_tokens} tokens: {free:,} of {total:,} bytes were left; lower max_num_batched_tokens "
                f"or max_num_seqs (now {limits.max_num_seqs}), or take a smaller model"
            ) from error

    def _flash_attention(self) -> FlashAttention | None:
        if self._attention == "triton":
            return None
        from octavo.kernels.external import flash_attention

        assert self.gpu is not None, "a backend that cannot run loads nothing"
        if (reason := flash_attention.why_not(self.gpu.capability)) is not None:
            raise ConfigError(reason)
        return flash_attention.FlashAttention()

    def _hopper(self, device: torch.device) -> HopperKernels | None:
        """On a Hopper, if this Triton has Gluon; the plain kernels serve where there is none."""
        assert self.gpu is not None, "a backend that cannot run loads nothing"
        if not has_hopper_kernels(self.gpu.capability):
            return None
        from octavo.kernels.cuda.program import HopperKernels
        from octavo.kernels.triton.attention.hopper_decode import HopperDecode
        from octavo.kernels.triton.attention.hopper_prefill import HopperPrefill

        number = self.gpu.num_multiprocessors
        return HopperKernels(HopperPrefill(number, device), HopperDecode(number))


def has_hopper_kernels(capability: tuple[int, int]) -> bool:
    """Whether attention and small products have kernels of their own: a Hopper, and this Triton has Gluon."""
    return capability[0] == HOPPER and importlib.util.find_spec("triton.experimental.gluon") is not None


def _prepare_triton() -> None:
    """What Triton does once a process, half a second, when it first looks for a kernel: read all of itself for its
    cache's keys, and find the driver. Beside the weights nobody waits for it."""
    with suppress(Exception):  # whoever launches a kernel will say what is wrong
        from triton.runtime import driver
        from triton.runtime.cache import triton_key

        triton_key()
        assert driver.active


def _torch_has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.version.cuda is not None
