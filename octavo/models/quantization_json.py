"""How a folder's matrices are stored: the quantization_config in its config.json, or a file of its own beside that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.models.config_file import ConfigFile, read_json
from octavo.models.regular_file import is_there
from octavo.models.supported import check_as
from octavo.quantization.described import Quantization
from octavo.quantization.other_writers import FILES, OTHERS, as_known
from octavo.quantization.registry import SCHEMES
from octavo.shown import shown


def stated_quantization(config: ConfigFile, family: str) -> Quantization | None:
    """None if the file names no method: each tensor's own type then says how it is stored."""
    for key in ("quantization_config", "compression_config"):
        if config.has(key):
            return _read(config, config.values[key], family, key)
    return None


def quantization_beside(file: ConfigFile, family: str) -> Quantization:
    """What a file says that describes a model's tensors in place of config.json."""
    return _read(file, file.values, family)


def file_beside(folder: Path) -> ConfigFile | None:
    """Such a file, with its method."""
    for name, method in FILES.items():
        if is_there(folder / name):
            return ConfigFile(folder / name, {"quant_method": method, **read_json(folder / name)})
    return None


def _read(file: ConfigFile, described: Any, family: str, key: str = "") -> Quantization:
    """key: that the description is under; none: it is the whole file."""
    stated = described.get("quant_method", described) if isinstance(described, dict) else described
    with _naming(file, key):
        method, known = as_known(described) if isinstance(described, dict) else (None, {})
    if not isinstance(method, str) or method not in SCHEMES:
        raise UnsupportedModelError(
            f"{file.path}: {file.within}{key or 'it'} asks for {shown(stated)}; Octavo reads "
            f"{', '.join((*SCHEMES, *OTHERS))}, unquantised safetensors, and GGUF files"
        )
    check_as(family, method, str(file.path))
    with _naming(file, key):
        return SCHEMES[method](known)


@contextmanager
def _naming(file: ConfigFile, key: str) -> Iterator[None]:
    """Put the file's name before an error about its quantization_config."""
    try:
        yield
    except ModelLoadError as error:
        text = str(error) if key else str(error).removeprefix("quantization_config.")
        raise type(error)(f"{file.path}: {file.within}{text}") from None
