"""Compiles CUDA C++ kernels with nvcc, once for each source, GPU type and set of compile-time parameters.

    source + what it includes + macros + GPU + nvcc  --sha256-->  ~/.cache/octavo/cuda/<source>-<key>.cubin

A cubin is machine code for one type of GPU. It needs no runtime library and loads in a millisecond.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from octavo import env
from octavo.errors import KernelBuildError
from octavo.kernels.build import kept_files
from octavo.kernels.build.build import find_sources
from octavo.kernels.build.includes import with_includes

_FLAGS = ("-std=c++17", "-cubin", "-lineinfo")


@lru_cache
def find_nvcc() -> Path | None:
    """nvcc from the PATH, from NVIDIA's packages on PyPI (`octavo[cuda]`), or from a CUDA toolkit."""
    if found := shutil.which("nvcc"):
        return Path(found)
    spec = importlib.util.find_spec("nvidia")
    folders = [*(spec.submodule_search_locations or ())] if spec is not None else []
    candidates = [Path(folder, part, "bin/nvcc") for folder in folders for part in ("cu13", "cuda_nvcc")]
    return next((path for path in [*candidates, Path("/usr/local/cuda/bin/nvcc")] if path.is_file()), None)


def compile_kernel(
    name: str, macros: Mapping[str, str | int], capability: tuple[int, int], source: Path | None = None
) -> bytes:
    """The cubin of csrc/cuda/{name}.cu, or of a custom source that includes it. Raises KernelBuildError."""
    return Variant(name, tuple(macros.items()), capability, str(source.resolve()) if source else None).compile()


@dataclass(frozen=True, slots=True)
class Variant:
    """A source of csrc/cuda, by name, with its compile-time parameters, for GPUs of one compute capability. including:
    the absolute path of a source elsewhere that changes it with hooks, and is compiled instead."""

    name: str
    macros: tuple[tuple[str, str | int], ...]
    capability: tuple[int, int]
    including: str | None = None

    def is_built(self) -> bool:
        return kept_files.is_whole(self._kept(_needed_nvcc()))

    def compile(self) -> bytes:
        """The cubin. Raises KernelBuildError."""
        nvcc = _needed_nvcc()
        kept = self._kept(nvcc)
        if kept_files.is_whole(kept):
            return kept.read_bytes()
        cubin = self._run(nvcc)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent, prefix=kept_files.BUILDING) as work:
                made = Path(work, kept.name)
                made.write_bytes(cubin)
                kept_files.put(made, kept)
            self._remember()
        except OSError as error:
            print(
                f"octavo: CUDA kernels cannot be kept in {kept.parent}: {error.strerror}; they are compiled at every "
                "start; set OCTAVO_CACHE_DIR to a folder that can be written",
                file=sys.stderr,
            )
        return cubin

    def _run(self, nvcc: Path) -> bytes:
        source = self._sources()[0]
        try:
            with tempfile.TemporaryDirectory() as work:
                made = Path(work, f"{self.name}.cubin")
                folder = f"-I{find_sources() / 'cuda'}"
                command = [str(nvcc), *self._arguments(), folder, str(source), "-o", str(made)]
                done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
                if done.returncode == 0:
                    return made.read_bytes()
        except OSError as error:
            raise KernelBuildError(f"{nvcc} could not compile {source}: {error}") from error
        raise KernelBuildError(f"{nvcc} refused {source}:\n{' '.join(command)}\n{done.stderr[-4000:]}")

    def _arguments(self) -> list[str]:
        major, minor = self.capability
        target = f"{major}{minor}a" if major >= 9 else f"{major}{minor}"
        macros = (f"-D{key}={value}" for key, value in self.macros)
        return [*_FLAGS, f"-gencode=arch=compute_{target},code=sm_{target}", *macros]

    def _sources(self) -> list[Path]:
        """The source, then all that it is made of. A header that is missing is for the compiler to tell."""
        folder = find_sources() / "cuda"
        plain = folder / f"{self.name}.cu"
        source = Path(self.including) if self.including else plain
        found = with_includes([source.name, plain.name], [source.parent, folder])
        return [source, *sorted({path for path in found.values() if path is not None} - {source})]

    def _kept(self, nvcc: Path) -> Path:
        status = nvcc.stat()
        parts = [*self._arguments(), str(nvcc.resolve()), f"{status.st_size} {status.st_mtime_ns}"]
        sources = b"".join(path.read_bytes() for path in self._sources())
        digest = hashlib.sha256("\0".join(parts).encode() + sources).hexdigest()
        return _cache() / f"{self.name}-{digest[:24]}.cubin"

    def _remember(self) -> None:
        """Record this variant for `used_variants`. Nothing depends on the record, so a disk error is ignored."""
        text = json.dumps(asdict(self))
        path = _cache() / "used" / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def used_variants(capability: tuple[int, int]) -> list[Variant]:
    """The variants that this machine has compiled for such GPUs, without those whose set of parameters is outdated, or
    whose own source is gone. A source that was never compiled comes with its default parameters."""
    names = sorted(path.stem for path in (find_sources() / "cuda").glob("*.cu"))
    found: dict[tuple[str, str | None], list[Variant]] = {(name, None): [] for name in names}
    paths = [*(_cache() / "used").glob("*.json")] if _cache().is_dir() else []
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime):
        variant = _read(path)
        if variant is None or variant.capability != capability or variant.name not in names:
            continue
        if variant.including is not None and not Path(variant.including).is_file():
            continue
        alike = found.setdefault((variant.name, variant.including), [])
        # skip variants whose parameters the source no longer has
        if not alike or dict(alike[0].macros).keys() == dict(variant.macros).keys():
            alike.append(variant)
    return [one for (name, _), some in found.items() for one in some or [Variant(name, (), capability)]]


def _read(path: Path) -> Variant | None:
    try:
        held = json.loads(path.read_text())
        macros = tuple((str(key), value) for key, value in held["macros"])
        major, minor = held["capability"]
        including = held.get("including")
        return Variant(held["name"], macros, (major, minor), None if including is None else str(including))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cache() -> Path:
    return env.preferred_cache_dir() / "cuda"


def _needed_nvcc() -> Path:
    nvcc = find_nvcc()
    if nvcc is None:
        raise KernelBuildError("nvcc, which compiles CUDA kernels, is not installed: pip install 'octavo[cuda]'")
    return nvcc
