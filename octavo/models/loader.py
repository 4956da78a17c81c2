"""From a model's name to an open Checkpoint.

smollm2, gemma3-270m      a packaged model              models/packaged.py
path/to/file.gguf         a GGUF file                   models/gguf*.py
path/to/folder            a Hugging Face folder         models/config_json.py, models/safetensors.py
owner/name                the same, from the hub        models/hub.py
owner/name:file.gguf      a GGUF file from the hub
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from octavo.config import ModelConfig
from octavo.errors import ModelLoadError
from octavo.kernels.reference.dequantize import convert
from octavo.kernels.tensor import DType, HostTensor
from octavo.models.checkpoint import Checkpoint, StoredTensor, at_hand
from octavo.models.gguf import read_gguf
from octavo.models.gguf_config import architecture_from_gguf, sampling_defaults
from octavo.models.gguf_names import canonical_name, layout_change
from octavo.models.packaged import PACKAGED_MODELS, locate_packaged_model

Convert = Callable[[HostTensor, DType], HostTensor]

_DTYPES: dict[str, DType] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def open_checkpoint(config: ModelConfig, convert: Convert = convert) -> Checkpoint:
    """Find, check and map a model; no tensor is read. `convert` changes dtypes when tensors are read."""
    checkpoint = open_gguf(_locate(config), config.model)
    if config.dtype == "auto":
        return checkpoint
    return converted(checkpoint, _DTYPES[config.dtype], convert)


def _locate(config: ModelConfig) -> Path:
    if config.model in PACKAGED_MODELS:
        return locate_packaged_model(config.model)
    return Path(config.model)


def open_gguf(path: Path, label: str) -> Checkpoint:
    file = read_gguf(path)
    architecture = architecture_from_gguf(file)
    kind = file.metadata["general.architecture"]
    stored: dict[str, StoredTensor] = {}
    for gguf_name, tensor in file.tensors.items():
        name = canonical_name(kind, gguf_name)
        if name is None:
            continue
        entry = at_hand(tensor)
        change = layout_change(kind, name, architecture)
        stored[name] = entry if change is None else entry.then(change)
    return Checkpoint(
        label=label,
        architecture=architecture,
        stored=stored,
        tokenizer_source=file,
        sampling_defaults=sampling_defaults(file),
    )


def converted(checkpoint: Checkpoint, dtype: DType, convert: Convert) -> Checkpoint:
    """The same checkpoint, every tensor in one dense dtype when it is read."""
    from dataclasses import replace

    def one(name: str, tensor: StoredTensor) -> StoredTensor:
        def read() -> HostTensor:
            try:
                return convert(tensor.read(), dtype)
            except OverflowError as error:
                raise ModelLoadError(f"{checkpoint.label}: tensor {name!r}: {error}; choose another dtype") from None

        return StoredTensor(dtype, tensor.shape, read)

    return replace(checkpoint, stored={name: one(name, tensor) for name, tensor in checkpoint.stored.items()})
