"""The tensors of an adapter's file: to which matrix of the model each belongs, and whether its shape fits.

Every tensor must belong to a matrix, in the shape that the model and the configuration give it; an error names the
tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.adapters import AdapterTarget
from octavo.kernels.tensor import DENSE_DTYPES, HostTensor
from octavo.lora.adapter_config import AdapterConfig
from octavo.models.folder import canonical_names
from octavo.shown import shown

_PREFIX = "base_model.model."
_ENDING = re.compile(
    r"\.(?P<which>lora_[AB]\.weight|lora_embedding_[AB]|base_layer\.(?:weight|bias)|lora_magnitude_vector(?:\.weight)?"
    r"|lora_[AB]\.bias)$"
)


def tensor_pairs(
    path: Path,
    tensors: Mapping[str, HostTensor],
    targets: Mapping[str, AdapterTarget],
    family: str,
    *,
    is_part: bool = False,
) -> dict[str, tuple[str, str]]:
    """By module: the names of its A and B. is_part: others than the targets are left out."""
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
            if is_part:
                continue
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
    if not found and not is_part:
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


def check_pair(
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
                f"in {config.path.name}, give it {list(shape)}: is it another model's adapter?"
            )
        if tensor.dtype not in DENSE_DTYPES:
            raise UnsupportedModelError(
                f"{path}: tensor {shown(name)} is {tensor.dtype}, allowed are {', '.join(sorted(DENSE_DTYPES))}"
            )


def check_complete(
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
