"""The C++ compiler that builds the kernels, its flags for this processor, and running several side by side."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from octavo import env
from octavo.errors import BackendUnavailableError, KernelBuildError

COMPILERS = ("g++", "clang++", "c++")
#: no -ffast-math: the sampler must see a NaN. Contraction fuses a*b+c in every loop alike.
FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-pthread", "-fvisibility-inlines-hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
#: for tests: an access out of bounds or undefined arithmetic ends the process
SANITIZER_FLAGS = (
    *("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"),
    "-fno-sanitize-recover=undefined",
)
_X86 = ("x86_64", "AMD64", "i686")
_ERROR_TAIL_LINES = 20
_POLL_S = 0.1


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
    # Asking the compiler for its version takes milliseconds; an upgrade changes its file.
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
    """Model and features of this processor."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = [next(file, "") for _ in range(40)]  # the first processor's entry
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return " ".join(line.strip() for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))


class Compilers:
    """Compilers that run side by side; `end` stops them all after one fails, or at Ctrl-C."""

    def __init__(self) -> None:
        self._is_over = False

    def run(self, command: list[str], work: str) -> None:
        """work: the folder for the compiler's temporary files, so that only one disk needs room. Libraries preloaded
        into this process, such as a sanitizer, are not loaded into the compiler."""
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        code, output = self._wait_for(command, environment | {"TMPDIR": work, "LC_ALL": "C"})
        if code == 0:
            return
        if os.strerror(errno.ENOSPC) in output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), work)
        tail = "\n".join(output.splitlines()[-_ERROR_TAIL_LINES:])
        raise KernelBuildError(
            "the C++ compiler refused the CPU kernels; set CXX to g++ 11, clang 14 or newer, or use "
            f"backend='reference'.\n{shlex.join(command)}\n{tail}"
        )

    def end(self) -> None:
        self._is_over = True

    def _wait_for(self, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        """-> exit code and output."""
        if self._is_over:
            return 1, "ended"
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, errors="replace", env=environment
        ) as process:
            while not self._is_over:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    out, errors = process.communicate(timeout=_POLL_S)
                    return process.returncode, (errors or out).strip()
            process.kill()  # its children may hold the pipes open for a while, so they are not read to the end
        return 1, "ended"
