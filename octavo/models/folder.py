"""A Hugging Face folder as a Checkpoint: config.json, generation_config.json and safetensors.

Exporters differ in two ways that are evened out here: a model saved without its language-model head leaves
the outer prefix off its names, and GPT-2 stores its projections as [in, out].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError
from octavo.kernels.tensor import BLOCK_FORMATS, HostTensor
from octavo.models.checkpoint import Checkpoint, StoredTensor, at_hand
from octavo.models.config_json import architecture_from_config
from octavo.models.json_file import read_json, read_optional_json
from octavo.models.safetensors import read_folder

#: generation_config.json's keys under SamplingParams' names
_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
_OUTER_PREFIX = {"gpt2": "transformer."}
_TRANSPOSED_IN_GPT2 = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def open_folder(folder: Path, label: str) -> Checkpoint:
    checkpoint = open_config(folder, label)
    family = checkpoint.architecture.family
    tensors = _with_outer_prefix(read_folder(folder), _OUTER_PREFIX.get(family, "model."))
    stored = {name: _canonical(family, name, tensor) for name, tensor in tensors.items()}
    return checkpoint.with_tensors(stored)


def open_config(folder: Path, label: str) -> Checkpoint:
    """The folder's configuration; no tensors."""
    config = read_json(folder / "config.json")
    generation = read_optional_json(folder / "generation_config.json")
    overridden = {key: generation[key] for key in ("bos_token_id", "eos_token_id") if generation.get(key) is not None}
    return Checkpoint(
        label=label,
        architecture=architecture_from_config(folder / "config.json", {**config, **overridden}),
        stored={},
        tokenizer_source=folder,
        sampling_defaults=_sampling_defaults(folder / "generation_config.json", generation),
    )


def _sampling_defaults(path: Path, generation: dict[str, Any]) -> dict[str, Any]:
    defaults = {name: generation[key] for key, name in _SAMPLING.items() if generation.get(key) is not None}
    for name, value in defaults.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelLoadError(f"{path}: {name} is {value!r}; allowed: a number")
    return defaults


def _with_outer_prefix(tensors: dict[str, HostTensor], prefix: str) -> dict[str, HostTensor]:
    if any(name.startswith(prefix) for name in tensors):
        return tensors
    return {name if name.startswith("lm_head.") else prefix + name: tensor for name, tensor in tensors.items()}


def _canonical(family: str, name: str, tensor: HostTensor) -> StoredTensor:
    if family == "gpt2" and name.endswith(_TRANSPOSED_IN_GPT2) and len(tensor.shape) == 2:
        return StoredTensor(tensor.dtype, tensor.shape[::-1], lambda: _transposed(tensor))
    return at_hand(tensor)


def _transposed(tensor: HostTensor) -> HostTensor:
    _, element_bytes = BLOCK_FORMATS[tensor.dtype]
    words: NDArray[Any] = tensor.data.view(np.dtype(f"u{element_bytes}")).reshape(tensor.shape)
    data = np.ascontiguousarray(words.T).reshape(-1).view(np.uint8)
    return HostTensor(tensor.dtype, tensor.shape[::-1], data)


def saved_dtype(architecture_path: Path) -> str:
    """The dtype that config.json says its weights have."""
    config = read_json(architecture_path / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
