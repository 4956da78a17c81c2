"""A Hugging Face folder as a Checkpoint: config.json, generation_config.json and safetensors.

Exporters differ, and this file hides the differences: a model saved without its LM head omits the outer prefix of its
names, a vision model puts its text part under another prefix, and GPT-2 stores its projections as [in, out].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError
from octavo.kernels.tensor import BLOCK_FORMATS, HostTensor, StoredTensor, at_hand, take_part
from octavo.models.architecture import Architecture
from octavo.models.checkpoint import Checkpoint
from octavo.models.config_file import ConfigFile, checked_defaults, read_json, read_optional_json
from octavo.models.config_json import architecture_from_config
from octavo.models.conversion import as_embedder
from octavo.models.quantization_json import file_beside
from octavo.models.regular_file import is_there
from octavo.models.sentence_transformers import read_pooling
from octavo.models.weight_files import read_folder
from octavo.observe.logging import LOGGER
from octavo.sampling_params import known_to
from octavo.shown import shown

_OUTER_PREFIX = {"gpt2": "transformer.", "bert": "bert.", "roberta": "roberta.", "mpnet": "mpnet."}
_EMBEDDING = {"gpt2": "transformer.wte.weight", "opt": "model.decoder.embed_tokens.weight"}
#: prefixes of a vision model's text part, in both of transformers' formats
_TEXT_PART = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.",
    "model.language_model.": "model.",
}
_IMAGE_PART = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_TRANSPOSED_IN_GPT2 = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
#: endings of old files, and today's
_RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_COMPARED_BYTES = 1 << 24
_CODES = ("F8_E4M3", "I8", "U8", "I32")

T = TypeVar("T")


def open_folder(folder: Path, label: str) -> Checkpoint:
    checkpoint, found = open_config(folder, label), read_folder(folder)
    if checkpoint.architecture.quantization is None and any(each.dtype in _CODES for each in found.tensors.values()):
        checkpoint = open_config(folder, label, file_beside(folder))
    architecture = checkpoint.architecture
    prefix = _OUTER_PREFIX.get(architecture.family, "model.")
    if any(name.startswith(_IMAGE_PART) for name in found.tensors):
        LOGGER.warning("%s: only the model's text part is read: images are refused", folder)
    tensors = _own_layers(folder, architecture, _with_outer_prefix(_text_part(found.tensors), prefix))
    unreadable = _with_outer_prefix(_text_part(found.unreadable), prefix)
    if architecture.tie_word_embeddings:
        _warn_of_own_head(folder, tensors, _EMBEDDING.get(architecture.family, "model.embed_tokens.weight"))
    stored = {_renamed(name): _canonical(architecture.family, name, tensor) for name, tensor in tensors.items()}
    return replace(checkpoint, stored=stored, unreadable=unreadable)


def _own_layers(folder: Path, a: Architecture, tensors: dict[str, T]) -> dict[str, T]:
    """Without the layers that guess further tokens, which come after the model's own."""
    layers = range(a.num_layers, a.num_layers + a.extra.get("guessing_layers", 0))
    guessing = tuple(f"model.layers.{layer}." for layer in layers)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(guessing)}
    if len(own) < len(tensors):
        which = "1 layer that guesses" if len(layers) == 1 else f"{len(layers)} layers that guess"
        verb = "is" if len(layers) == 1 else "are"
        LOGGER.warning("%s: %s further tokens %s not used", folder, which, verb)
    return own


def canonical_names(names: Iterable[str], family: str) -> dict[str, str]:
    """The canonical name of each tensor of a folder; those of a vision part have none."""
    text_part = _with_outer_prefix(_text_part({name: name for name in names}), _OUTER_PREFIX.get(family, "model."))
    return {own: canonical for canonical, own in text_part.items()}


def open_config(folder: Path, label: str, beside: ConfigFile | None = None) -> Checkpoint:
    """The folder's configuration; no tensors. beside: a file that describes quantised tensors."""
    _look_for_adapter(folder)
    if not is_there(folder / "config.json"):
        raise ModelLoadError(f"{folder / 'config.json'} cannot be read: No such file or directory{_hint(folder)}")
    config = read_json(folder / "config.json")
    generation = ConfigFile(folder / "generation_config.json", read_optional_json(folder / "generation_config.json"))
    architecture = architecture_from_config(folder / "config.json", config, generation, beside)
    if is_there(folder / "modules.json") and architecture.classes is None:
        architecture = as_embedder(architecture, read_pooling(folder))
    return Checkpoint(
        label=label,
        architecture=architecture,
        stored={},
        tokenizer_source=folder,
        sampling_defaults=checked_defaults(generation.path, generation.values, known_to("transformers")),
    )


def _hint(folder: Path) -> str:
    """For a folder without config.json: what it seems to be."""
    snapshots = sorted(folder.glob("snapshots/*/config.json"))
    if snapshots:
        return f"; the folder is a hub cache, the model is in {snapshots[-1].parent}"
    if is_there(folder / "params.json"):
        return "; the folder holds the makers' original format: take the model in Hugging Face's or as GGUF"
    inside = sorted(folder.glob("*/config.json"))
    if len(inside) == 1:
        return f"; there is one in {inside[0].parent}"
    return "; a model's folder has it beside its .safetensors files, or has one .gguf file in their place"


def _look_for_adapter(folder: Path) -> None:
    path = folder / "adapter_config.json"
    if not is_there(path):
        return
    if is_there(folder / "config.json"):
        LOGGER.warning("%s: the model is loaded without its adapter, which enable_lora and a LoRARequest apply", path)
        return
    of_model = read_json(path).get("base_model_name_or_path")
    raise ModelLoadError(
        f"{path}: the folder holds an adapter of {shown(of_model)}, not a model: load that model with enable_lora, "
        "and the adapter by a LoRARequest or lora_modules"
    )


def _text_part(named: Mapping[str, T]) -> dict[str, T]:
    """Drop the vision part, and rename the text part's tensors as in a text-only model."""
    result = {}
    for name, value in named.items():
        if name.startswith(_IMAGE_PART):
            continue
        before, after = next((change for change in _TEXT_PART.items() if name.startswith(change[0])), ("", ""))
        result[after + name.removeprefix(before)] = value
    return result


def _with_outer_prefix(named: dict[str, T], prefix: str) -> dict[str, T]:
    if any(name.startswith(prefix) for name in named):
        return named
    return {name if name.startswith("lm_head.") else prefix + name: value for name, value in named.items()}


def _warn_of_own_head(folder: Path, tensors: Mapping[str, HostTensor], embedding_name: str) -> None:
    """The configuration decides, as in vLLM, even if the file's own LM head differs and may be the trained one."""
    head, embedding = tensors.get("lm_head.weight"), tensors.get(embedding_name)
    if head is None or embedding is None or _are_equal(head, embedding):
        return
    LOGGER.warning(
        "%s: tie_word_embeddings is true, so %s is also the LM head; the file's own lm_head.weight, which differs, "
        "is not used (to use it, set tie_word_embeddings to false)",
        *(folder / "config.json", embedding_name),
    )


def _are_equal(one: HostTensor, other: HostTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    starts = range(0, one.data.nbytes, _COMPARED_BYTES)
    return all(
        np.array_equal(one.data[start : start + _COMPARED_BYTES], other.data[start : start + _COMPARED_BYTES])
        for start in starts
    )


def _canonical(family: str, name: str, tensor: HostTensor) -> StoredTensor:
    if family == "gpt2" and name.endswith(_TRANSPOSED_IN_GPT2) and len(tensor.shape) == 2:
        flipped = StoredTensor(tensor.dtype, tensor.shape[::-1], lambda: _transposed(tensor))
        return replace(flipped, read_part=lambda cut: _transposed(take_part(tensor, cut.transposed)))
    return at_hand(tensor)


def _renamed(name: str) -> str:
    return next((name.removesuffix(old) + new for old, new in _RENAMED.items() if name.endswith(old)), name)


def _transposed(tensor: HostTensor) -> HostTensor:
    _, element_bytes = BLOCK_FORMATS[tensor.dtype]
    words: NDArray[Any] = tensor.data.view(np.dtype(f"u{element_bytes}")).reshape(tensor.shape)
    data = np.ascontiguousarray(words.T).reshape(-1).view(np.uint8)
    return HostTensor(tensor.dtype, tensor.shape[::-1], data)


def saved_dtype(folder: Path) -> str:
    """The weights' dtype in config.json, under either of its keys."""
    config = ConfigFile(folder / "config.json", read_json(folder / "config.json"))
    key = "dtype" if config.has("dtype") else "torch_dtype"
    return config.text(key, "bfloat16").removeprefix("torch.")
