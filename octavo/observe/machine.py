"""This machine's processor, memory, GPUs and version of Octavo, for benchmark results and `octavo doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

# Features that kernels use, as named in /proc/cpuinfo: x86 first, then Arm.
_FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"),
    *("asimd", "asimddp", "fphp", "i8mm", "bf16", "sve", "sve2"),
)


def installed_version() -> str:
    """The package's version. octavo/__init__.py has it too, but may not be imported from here."""
    from importlib.metadata import PackageNotFoundError, version  # with all that reads e-mail

    try:
        return version("octavo")
    except PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    names = _cpuinfo("model name")
    return names or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Instruction sets of this processor that kernels can use; empty if the system does not list them."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return [feature for feature in _FEATURES if feature in flags]


def num_cores() -> int:
    """Cores that this process may use; a container or taskset may limit them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Total bytes, and bytes available without swapping."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in meminfo}
    except OSError:
        return total, total
    return sizes["MemTotal"], sizes["MemAvailable"]


def gpus() -> list[str]:
    """Name and memory of each GPU that the NVIDIA driver knows."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as cpuinfo:
            return next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith(key)), "")
    except OSError:
        return ""
