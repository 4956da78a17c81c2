"""Compiles CUDA C++ kernels with nvcc, once for each source, GPU and set of compile-time parameters.

    source + headers + macros + GPU + nvcc  --sha256-->  ~/.cache/octavo/cuda/<source>-<key>.cubin

A cubin is machine code for one GPU. It needs no runtime library, and loads in a millisecond.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from octavo import env
from octavo.errors import KernelBuildError
from octavo.kernels.build import kept_files
from octavo.kernels.build.build import find_sources

_FLAGS = ("-std=c++17", "-cubin", "-lineinfo")


@lru_cache
def find_nvcc() -> Path | None:
    """nvcc on the PATH, of a toolkit, or of NVIDIA's packages from PyPI (`octavo[cuda]`)."""
    if found := shutil.which("nvcc"):
        return Path(found)
    spec = importlib.util.find_spec("nvidia")
    folders = [*(spec.submodule_search_locations or ())] if spec is not None else []
    candidates = [Path(folder, part, "bin/nvcc") for folder in folders for part in ("cu13", "cuda_nvcc")]
    return next((path for path in [*candidates, Path("/usr/local/cuda/bin/nvcc")] if path.is_file()), None)


def compile_kernel(name: str, macros: Mapping[str, str | int], capability: tuple[int, int]) -> bytes:
    """The cubin of csrc/cuda/{name}.cu. Raises KernelBuildError."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise KernelBuildError("there is no nvcc to compile CUDA kernels: pip install 'octavo[cuda]'")
    folder = find_sources() / "cuda"
    major, minor = capability
    target = f"{major}{minor}a" if major >= 9 else f"{major}{minor}"
    arguments = [
        *_FLAGS,
        f"-gencode=arch=compute_{target},code=sm_{target}",
        *(f"-D{key}={value}" for key, value in macros.items()),
    ]
    status = nvcc.stat()
    parts = [*arguments, str(nvcc.resolve()), f"{status.st_size} {status.st_mtime_ns}"]
    sources = [folder / f"{name}.cu", *sorted(folder.glob("*.h")), *sorted(folder.glob("*.cuh"))]
    digest = hashlib.sha256("\0".join(parts).encode() + b"".join(path.read_bytes() for path in sources)).hexdigest()
    kept = env.preferred_cache_dir() / "cuda" / f"{name}-{digest[:24]}.cubin"
    if kept_files.is_whole(kept):
        return kept.read_bytes()
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=kept_files.BUILDING) as work:
        made = Path(work, kept.name)
        command = [str(nvcc), *arguments, str(sources[0]), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise KernelBuildError(f"nvcc refused {sources[0]}:\n{' '.join(command)}\n{done.stderr[-4000:]}")
        kept_files.put(made, kept)
    return kept.read_bytes()
