"""What the CUDA driver says of a GPU, asked without torch: a machine without one must not pay for it."""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass

_HOPPER = 9
_CHAINING = (9, 0)

_MAJOR, _MINOR, _MULTIPROCESSORS = 75, 76, 16  # CUdevice_attribute


@dataclass(frozen=True, slots=True)
class GPU:
    """One device as its driver describes it."""

    name: str
    capability: tuple[int, int]
    num_bytes: int
    num_multiprocessors: int

    @property
    def chains(self) -> bool:
        """Programmatic dependent launch: a kernel may be resident before the one that it depends on has ended."""
        return self.capability >= _CHAINING


def has_hopper_kernels(capability: tuple[int, int]) -> bool:
    """Whether attention and small matmuls have Hopper kernels here: the GPU is a Hopper and Triton has Gluon."""
    return capability[0] == _HOPPER and importlib.util.find_spec("triton.experimental.gluon") is not None


def find_gpu(index: int) -> GPU | None:
    """The GPU of this index among those in CUDA_VISIBLE_DEVICES; None without a driver or such a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value <= index:
        return None
    driver.cuDeviceGet(ctypes.byref(device), index)
    name, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        return value.value

    return GPU(name.value.decode(), (attribute(_MAJOR), attribute(_MINOR)), size.value, attribute(_MULTIPROCESSORS))
