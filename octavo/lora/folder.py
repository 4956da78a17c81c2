"""An adapter as PEFT saves it: a folder with adapter_config.json and adapter_model.safetensors.

    base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight    [r, in]       A of a matrix
    base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight    [out, r]      its B
    base_model.model.model.embed_tokens.lora_embedding_A              [r, V]        the same of an embedding
    base_model.model.model.embed_tokens.lora_embedding_B              [H, r]

`tensor_pairs.py` checks that these tensors fit the model and the configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.adapters import AdaptedModule, AdaptedPart, AdapterTarget, FloatArray, ModuleWeights, Slices
from octavo.kernels.reference.dequantize import convert, dequantize
from octavo.kernels.tensor import DType, HostTensor
from octavo.lora.adapter_config import CONFIG_NAME, AdapterConfig, read_adapter_config
from octavo.lora.tensor_pairs import check_complete, check_pair, tensor_pairs
from octavo.lora_config import LoRADType
from octavo.models.regular_file import is_there, read_regular, read_whole
from octavo.models.safetensors import SafetensorsFile, parse_safetensors

WEIGHTS_NAME = "adapter_model.safetensors"
_ROUNDED: dict[LoRADType, DType] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter that fits the model. pairs: the names of the A and the B of each module, by its name."""

    config: AdapterConfig
    pairs: Mapping[str, tuple[str, str]]
    digest: str


def check_adapter(folder: Path, targets: Iterable[AdapterTarget], family: str, max_rank: int) -> AdapterFiles:
    """What a folder holds. Raises ModelLoadError if it does not fit the model."""
    return _files_of(folder, read_whole(_weights_path(folder)), targets, family, max_rank)[0]


class Adapter:
    """An adapter in memory. Implements `octavo.kernels.adapters.AdapterSource`."""

    def __init__(self, files: AdapterFiles, tensors: Mapping[str, HostTensor], rounded: LoRADType) -> None:
        """rounded: the type that its numbers are rounded to; auto: none."""
        self._files, self._tensors, self._rounded = files, tensors, rounded

    @property
    def digest(self) -> str:
        return self._files.digest

    @classmethod
    def read(
        cls,
        folder: Path,
        targets: Iterable[AdapterTarget],
        family: str,
        max_rank: int,
        rounded: LoRADType,
        *,
        is_part: bool = False,
    ) -> Adapter:
        """is_part: the model is a stage of a pipeline. What is not for its targets is for other stages."""
        data = read_whole(_weights_path(folder))
        files, found = _files_of(folder, data, targets, family, max_rank, is_part=is_part)
        return cls(files, found.tensors, rounded)

    def weights(self, module: AdaptedModule) -> ModuleWeights | None:
        ranks = [self._files.config.rank_of(part.name) for part in module.parts if part.name in self._files.pairs]
        if not ranks:
            return None
        most = module.sizes.max_rank
        a = np.zeros((module.width, module.in_features), np.float32)
        b = np.zeros((module.out_features, most), np.float32)
        first_output = 0
        for place, part in enumerate(module.parts):
            outputs = slice(first_output, first_output + part.out_features)
            first_output = outputs.stop
            if part.name in self._files.pairs:
                own_a, own_b = self._pair(part)
                a[place * most : place * most + len(own_a)] = own_a
                b[outputs, : own_b.shape[1]] = own_b
        return ModuleWeights(max(ranks), a, b)

    def _pair(self, part: AdaptedPart) -> tuple[FloatArray, FloatArray]:
        """This rank's A and scaled B of one matrix."""
        a, b = (self._numbers(name) for name in self._files.pairs[part.name])
        scale = np.float32(self._files.config.scale_of(part.name))
        return _taken(a, part.inputs, 1), _taken(b, part.outputs, 0) * scale

    def _numbers(self, name: str) -> FloatArray:
        tensor = self._tensors[name]
        return dequantize(tensor if self._rounded == "auto" else convert(tensor, _ROUNDED[self._rounded]))


def _taken(numbers: FloatArray, slices: Slices | None, axis: int) -> FloatArray:
    if slices is None:
        return numbers
    return np.concatenate([numbers[each] if axis == 0 else numbers[:, each] for each in slices], axis=axis)


def _weights_path(folder: Path) -> Path:
    path = folder / WEIGHTS_NAME
    if not is_there(path) and not is_there(folder / "adapter_model.bin"):
        what = f"holds no {WEIGHTS_NAME}" if folder.is_dir() else "is no folder"
        raise ModelLoadError(
            f"{folder} {what}; allowed is an adapter's folder as PEFT saves it, with {WEIGHTS_NAME} and {CONFIG_NAME}"
        )
    if not is_there(path) and is_there(folder / "adapter_model.bin"):
        raise ModelLoadError(
            f"{folder / 'adapter_model.bin'} is a pickle, which may run code when it is read; save the adapter again "
            "with safe_serialization=True"
        )
    return path


def _files_of(
    folder: Path,
    data: NDArray[np.uint8],
    targets: Iterable[AdapterTarget],
    family: str,
    max_rank: int,
    *,
    is_part: bool = False,
) -> tuple[AdapterFiles, SafetensorsFile]:
    path, config = _weights_path(folder), read_adapter_config(folder)
    found = parse_safetensors(path, data)
    for error in found.unreadable.values():
        raise UnsupportedModelError(error)
    by_name = {target.name: target for target in targets}
    pairs = tensor_pairs(path, found.tensors, by_name, family, is_part=is_part)
    for module, names in pairs.items():
        check_pair(path, config, by_name[module], names, found.tensors, max_rank)
    check_complete(path, config, pairs, by_name)
    return AdapterFiles(config, pairs, _digest(config, data)), found


def _digest(config: AdapterConfig, data: NDArray[np.uint8]) -> str:
    """Adapters with equal digests have equal numbers."""
    digest = blake2b(read_regular(config.path), digest_size=16)
    digest.update(data.data)
    return digest.hexdigest()
