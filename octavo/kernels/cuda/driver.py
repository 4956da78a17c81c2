"""A GPU as its CUDA driver describes it. torch is not imported: a machine without a GPU must not pay for it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
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
    def is_interpreted(self) -> bool:
        """Whether Triton's interpreter runs the kernels, so that there need not be a GPU."""
        return os.environ.get("TRITON_INTERPRET") == "1"

    @property
    def chains(self) -> bool:
        """Programmatic dependent launch: a kernel may become resident before its predecessor has ended."""
        return self.capability >= _CHAINING


def reaches(index: int, other: int) -> bool:
    """Whether kernels on one GPU can read and write the memory of another, as the driver tells."""
    driver = ctypes.CDLL("libcuda.so.1")
    devices, answer = (ctypes.c_int * 2)(), ctypes.c_int()
    for place, each in enumerate((index, other)):
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(devices, 4 * place), each):
            return False
    return driver.cuDeviceCanAccessPeer(ctypes.byref(answer), *devices) == 0 and answer.value == 1


def has_hopper_kernels(capability: tuple[int, int]) -> bool:
    """Whether the Hopper kernels for attention and small matmuls can run: on a Hopper GPU, with Triton's Gluon."""
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
