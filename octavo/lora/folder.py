"""An adapter as PEFT saves it: a folder with adapter_config.json and adapter_model.safetensors.

    base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight    [r, in]       A of a matrix
    base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight    [out, r]      its B
    base_model.model.model.embed_tokens.lora_embedding_A              [r, V]        the same of an embedding
    base_model.model.model.embed_tokens.lora_embedding_B              [H, r]

Every tensor must belong to a matrix of the model, in the shape that the model and the configuration give it; an error
names the tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.adapters import AdaptedModule, AdaptedPart, AdapterTarget, FloatArray, ModuleWeights, Slices
from octavo.kernels.reference.dequantize import convert, dequantize
from octavo.kernels.tensor import DENSE_DTYPES, DType, HostTensor
from octavo.lora.adapter_config import AdapterConfig, read_adapter_config
from octavo.lora_config import LoRADType
from octavo.models.folder import canonical_names
from octavo.models.regular_file import is_there, read_regular, read_whole
from octavo.models.safetensors import SafetensorsFile, parse_safetensors
from octavo.shown import shown

WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ENDING = re.compile(
    r"\.(?P<which>lora_[AB]\.weight|lora_embedding_[AB]|base_layer\.(?:weight|bias)|lora_magnitude_vector(?:\.weight)?"
    r"|lora_[AB]\.bias)$"
)
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
        cls, folder: Path, targets: Iterable[AdapterTarget], family: str, max_rank: int, rounded: LoRADType
    ) -> Adapter:
        files, found = _files_of(folder, read_whole(_weights_path(folder)), targets, family, max_rank)
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
    if not is_there(path) and is_there(folder / "adapter_model.bin"):
        raise ModelLoadError(
            f"{folder / 'adapter_model.bin'} is a pickle, which may run code when it is read; save the adapter again "
            "with safe_serialization=True"
        )
    return path


def _files_of(
    folder: Path, data: NDArray[np.uint8], targets: Iterable[AdapterTarget], family: str, max_rank: int
) -> tuple[AdapterFiles, SafetensorsFile]:
    path, config = _weights_path(folder), read_adapter_config(folder)
    found = parse_safetensors(path, data)
    for error in found.unreadable.values():
        raise UnsupportedModelError(error)
    by_name = {target.name: target for target in targets}
    pairs = _pairs(path, found.tensors, by_name, family)
    for module, names in pairs.items():
        _check_pair(path, config, by_name[module], names, found.tensors, max_rank)
    _check_complete(path, config, pairs, by_name)
    return AdapterFiles(config, pairs, _digest(config, data)), found


def _pairs(
    path: Path, tensors: Mapping[str, HostTensor], targets: Mapping[str, AdapterTarget], family: str
) -> dict[str, tuple[str, str]]:
    """By module: the names of its A and B."""
    found: dict[str, dict[str, str]] = {}
    for name, tensor in tensors.items():
        where = f"{path}: tensor {shown(name)}"
        match = _ENDING.search(name)
        if not name.startswith(_PREFIX) or match is None:
            raise UnsupportedModelError(
                f"{where} is no part of a LoRA adapter; allowed are {_PREFIX}MODULE.lora_A.weight, lora_B.weight, "
                "lora_embedding_A and lora_embedding_B: modules_to_save and biases are not applied"
            )
        own, which = name[len(_PREFIX) : match.start()], match["which"]
        if which.startswith("lora_magnitude"):
            raise UnsupportedModelError(f"{where} is of DoRA, which Octavo does not apply; train with use_dora=False")
        if which.endswith(".bias"):
            raise UnsupportedModelError(f"{where} is a bias, which Octavo does not apply; train with bias='none'")
        module = canonical_names([f"{own}.weight"], family).get(f"{own}.weight", "").removesuffix(".weight")
        if (target := targets.get(module)) is None:
            raise UnsupportedModelError(
                f"{where} changes {shown(own)}, which is no matrix of this model that adapters can change: these are "
                f"the embedding, the head, and the projections outside a layer of experts"
            )
        if which == "base_layer.weight":
            _check_base(where, tensor, target)
            continue
        is_table = which.startswith("lora_embedding")
        if is_table != target.is_table:
            kind = "an embedding: lora_embedding_A and _B" if target.is_table else "no embedding: lora_A and lora_B"
            raise ModelLoadError(f"{where} does not fit {shown(module)}, which is {kind}")
        found.setdefault(module, {})["A" if "_A" in which else "B"] = name
    if not found:
        raise ModelLoadError(f"{path} holds no matrices of an adapter; save it again with PEFT's save_pretrained")
    for names in found.values():
        if len(names) < 2:
            (there,), lacking = names.values(), "B" if "A" in names else "A"
            raise ModelLoadError(f"{path}: tensor {shown(there)} has no {lacking} beside it; save the adapter again")
    return {module: (names["A"], names["B"]) for module, names in found.items()}


def _check_base(where: str, tensor: HostTensor, target: AdapterTarget) -> None:
    """PEFT may save an embedding's own numbers too; the model has them, unless its vocabulary was changed."""
    shape = target.shape[::-1] if target.is_table else target.shape
    if tensor.shape != shape:
        raise UnsupportedModelError(
            f"{where} has shape {shown(list(tensor.shape))} and the model's is {list(shape)}: an adapter cannot change "
            "the vocabulary; merge it into the model"
        )


def _check_pair(
    path: Path,
    config: AdapterConfig,
    target: AdapterTarget,
    names: tuple[str, str],
    tensors: Mapping[str, HostTensor],
    max_rank: int,
) -> None:
    rank = config.rank_of(target.name)
    if rank > max_rank:
        raise ModelLoadError(
            f"{config.path}: {target.name} has rank {rank}, allowed is max_lora_rank = {max_rank}: raise max_lora_rank"
        )
    for name, shape in zip(names, ((rank, target.shape[1]), (target.shape[0], rank)), strict=True):
        tensor = tensors[name]
        if tensor.shape != shape:
            raise ModelLoadError(
                f"{path}: tensor {shown(name)} has shape {shown(list(tensor.shape))}; the model, and a rank of {rank} "
                f"in {config.path.name}, give it {list(shape)}"
            )
        if tensor.dtype not in DENSE_DTYPES:
            raise UnsupportedModelError(
                f"{path}: tensor {shown(name)} is {tensor.dtype}, allowed are {', '.join(sorted(DENSE_DTYPES))}"
            )


def _check_complete(
    path: Path, config: AdapterConfig, pairs: Mapping[str, object], targets: Mapping[str, AdapterTarget]
) -> None:
    for module in targets:
        is_adapted = config.adapts(module)
        if is_adapted and module not in pairs:
            raise ModelLoadError(
                f"{path}: tensor {_PREFIX + module + '.lora_A.weight'!r} is missing, though target_modules of "
                f"{config.path.name} names it; save the adapter again"
            )
        if is_adapted is False and module in pairs:
            raise ModelLoadError(
                f"{path}: tensor {_PREFIX + module + '.lora_A.weight'!r} is there, though {config.path.name} leaves "
                "that module out; save the adapter again"
            )


def _digest(config: AdapterConfig, data: NDArray[np.uint8]) -> str:
    """Adapters with equal digests have equal numbers."""
    digest = blake2b(read_regular(config.path), digest_size=16)
    digest.update(data.data)
    return digest.hexdigest()
