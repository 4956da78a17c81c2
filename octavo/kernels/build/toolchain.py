"""Which C++ compiler builds the kernels, and with which flags for this processor."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from octavo import env
from octavo.errors import BackendUnavailableError

COMPILERS = ("g++", "clang++", "c++")
#: no -ffast-math: the sampler must see a NaN. Contraction makes a*b+c one fused operation in every loop alike.
FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-pthread", "-fvisibility-inlines-hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
#: for tests that look for accesses out of bounds and undefined arithmetic; what they find ends the process
SANITIZER_FLAGS = (
    *("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"),
    "-fno-sanitize-recover=undefined",
)
_X86 = ("x86_64", "AMD64", "i686")


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler and how to call it here."""

    command: tuple[str, ...]
    identity: str
    flags: tuple[str, ...]


def find_toolchain(isa: env.CpuIsa, cxx: str | None, *, sanitizes: bool = False) -> Toolchain:
    if os.name != "posix":
        raise BackendUnavailableError(
            f"the cpu backend is built on Linux and macOS only, this is {platform.system()}; use backend='reference'"
        )
    command = tuple(shlex.split(cxx)) if cxx else next(((name,) for name in COMPILERS if shutil.which(name)), None)
    if command is None:
        raise BackendUnavailableError(
            f"no C++ compiler: none of {', '.join(COMPILERS)} is on the PATH; install g++ 11 or clang 14 or newer "
            "(for example `apt install g++`), or set CXX"
        )
    found = shutil.which(command[0])
    if found is None:
        raise BackendUnavailableError(f"CXX is {cxx!r}, and there is no such program; set it to a C++20 compiler")
    # Which compiler, without the milliseconds it takes to ask it: an upgrade changes the file.
    real = Path(found).resolve()
    status = real.stat()
    identity = f"{real} {status.st_size} {status.st_mtime_ns}"
    flags = (*FLAGS, *_isa_flags(isa), *(SANITIZER_FLAGS if sanitizes else ()))
    return Toolchain(command, identity, flags)


def _isa_flags(isa: env.CpuIsa) -> tuple[str, ...]:
    if platform.machine() not in _X86:
        if isa == "avx2":
            raise BackendUnavailableError(
                f"OCTAVO_CPU_ISA is avx2 and this is a {platform.machine()} processor; use native or generic"
            )
        return ("-mcpu=native",) if isa == "native" else ()
    if isa == "avx2" and "avx2" not in cpu_identity().split():
        raise BackendUnavailableError("OCTAVO_CPU_ISA is avx2 and this processor has no AVX2; use native or generic")
    return {"native": ("-march=native",), "avx2": ("-march=x86-64-v3",), "generic": ()}[isa]


@lru_cache
def cpu_identity() -> str:
    """Model and features of the processor that runs this."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = [next(file, "") for _ in range(40)]  # the first processor's entry
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return " ".join(line.strip() for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))
