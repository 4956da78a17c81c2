"""GPUs that `octavo plan --gpu` knows by name, with the memory that CUDA reports for them."""

from __future__ import annotations

from octavo.errors import ConfigError
from octavo.kernels.cuda.driver import GPU
from octavo.shown import suggestion

#: name -> model, compute capability, GiB, multiprocessors
_KNOWN = {
    "b200": ("B200", (10, 0), 178.3, 148),
    "h200": ("H200", (9, 0), 139.8, 132),
    "h100": ("H100 80GB", (9, 0), 79.1, 132),
    "a100": ("A100 80GB", (8, 0), 79.1, 108),
    "a100-40gb": ("A100 40GB", (8, 0), 39.4, 108),
    "l40s": ("L40S", (8, 9), 44.4, 142),
    "l4": ("L4", (8, 9), 22.0, 58),
    "a10": ("A10", (8, 6), 22.0, 72),
    "a6000": ("RTX A6000", (8, 6), 47.4, 84),
    "5090": ("RTX 5090", (12, 0), 31.3, 170),
    "4090": ("RTX 4090", (8, 9), 23.6, 128),
    "3090": ("RTX 3090", (8, 6), 23.6, 82),
}


def known_gpu(name: str) -> GPU:
    """h100, RTX4090, A100-80GB. Raises ConfigError."""
    key = name.lower().removeprefix("nvidia").strip(" -_").removeprefix("rtx").strip(" -_").removesuffix("-80gb")
    if key not in _KNOWN:
        raise ConfigError(f"--gpu is {name!r}; {suggestion(key, _KNOWN)}, or give --memory 24GiB")
    model, capability, gib, multiprocessors = _KNOWN[key]
    return GPU(model, capability, int(gib * 2**30), multiprocessors)


def gpu_of_size(num_bytes: int) -> GPU:
    """A GPU of which only the memory is known: the other numbers are an A100's."""
    return GPU("GPU", (8, 0), num_bytes, 108)
