"""Where a model lies: its file or folder, by its name, and the source of its tokenizer. Opens no model.

smollm2, gemma3-270m, ...  a packaged model             packaged.py
path/to/file.gguf         a GGUF file, or one of its parts
path/to/folder            a Hugging Face folder, or one with a GGUF file
owner/name                the same, from the hub        hub.py
"""

from __future__ import annotations

import stat
from pathlib import Path

from octavo.config import ModelConfig
from octavo.errors import ConfigError, ModelLoadError
from octavo.models.gguf import GGUFFile
from octavo.models.gguf_parts import first_parts, read_gguf_model
from octavo.models.hub import download_config, download_model, is_hub_name
from octavo.models.packaged import PACKAGED_MODELS, locate_packaged_model
from octavo.observe.logging import LOGGER
from octavo.shown import shown

#: The source of a tokenizer: a folder with tokenizer.json and related files, or a GGUF file's metadata.
TokenizerSource = Path | GGUFFile

#: prefix of the separate file in which llama.cpp keeps a model's vision part
_IMAGE_PART = "mmproj"


def locate(config: ModelConfig) -> Path:
    """The model's file or folder, by load_format."""
    path = _find(config)
    if path.is_file() and config.load_format == "safetensors":
        raise ConfigError(f"load_format is safetensors, but model {config.model!r} is the file {path}: name a folder")
    if path.is_file() or config.load_format in ("safetensors", "dummy"):
        return path
    names = sorted(file.name for file in path.glob("*.gguf") if not file.name.startswith(_IMAGE_PART))
    ggufs = [path / name for name in first_parts(names)]
    wants_gguf = config.load_format == "gguf" or not any(path.glob("*.safetensors"))
    if wants_gguf and len(ggufs) == 1:
        return ggufs[0]
    if config.load_format == "gguf" or (wants_gguf and ggufs):
        found = ", ".join(file.name for file in ggufs) or "none"
        raise ModelLoadError(f"{path}: one GGUF file is wanted, found {found}: name the file itself")
    return path


def has_weights(config: ModelConfig) -> bool:
    """Whether the model's weights are on this machine, as far as names tell."""
    if config.model in PACKAGED_MODELS:
        return True
    path = _existing(config.model)
    if path is None or path.is_file():
        return path is not None or not is_hub_name(config.model)
    return any(any(path.glob(f"*.{ending}")) for ending in ("safetensors", "gguf", "bin", "pt", "pth"))


def tokenizer_source(config: ModelConfig) -> TokenizerSource:
    """The source of the model's own tokenizer. Reads neither configuration nor weights."""
    path = locate(config)
    return read_gguf_model(path) if path.is_file() else path


def check_tokenizer_name(name: str) -> None:
    """Raise ModelLoadError for what no tokenizer can have. Downloads nothing."""
    if name not in PACKAGED_MODELS and _existing(name) is None and not is_hub_name(name):
        raise ModelLoadError(f"tokenizer is {shown(name)}, which is no folder, file or hub id")


def locate_tokenizer(name: str) -> TokenizerSource:
    """The tokenizer that `tokenizer=` names: a folder, a GGUF file, a packaged model or a hub id."""
    if name in PACKAGED_MODELS:
        packaged = locate_packaged_model(name)
        return packaged if packaged.is_dir() else read_gguf_model(packaged)
    check_tokenizer_name(name)
    path = _existing(name)
    if path is not None:
        return path if path.is_dir() else read_gguf_model(path)
    return download_config(name, None)


def _find(config: ModelConfig) -> Path:
    if config.model in PACKAGED_MODELS:
        return locate_packaged_model(config.model)
    path = _existing(config.model)
    if path is not None:
        if config.revision is not None:
            LOGGER.warning("revision %r is ignored: %s is here, not on the hub", config.revision, path)
        return path
    if not is_hub_name(config.model):
        raise ModelLoadError(
            f"model {shown(config.model)} does not exist; allowed are a folder, a .gguf file, a hub id, "
            f"and the packaged {', '.join(PACKAGED_MODELS)}"
        )
    download = download_config if config.load_format == "dummy" else download_model
    return download(config.model, config.revision)


def _existing(name: str) -> Path | None:
    """The file or folder of that name, or None. A pipe or device is an error, since it cannot be mapped."""
    try:
        path = Path(name).expanduser()
        kind = path.stat().st_mode
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError) as error:  # no permission, a name too long, no such home, a NUL
        if is_hub_name(name):
            return None
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ModelLoadError(
            f"{shown(name)} cannot be opened: {reason}; allowed are a folder and a .gguf file"
        ) from None
    if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
        raise ModelLoadError(f"{path} is neither a folder nor a regular file; allowed are a folder and a .gguf file")
    return path
