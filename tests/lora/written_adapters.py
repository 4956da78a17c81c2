"""Adapters for tiny models, written without our code, and the models that they make when they are merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Arrays = dict[str, NDArray[Any]]

PREFIX = "base_model.model."
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEARS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path,
    model: Path,
    targets: Sequence[str] = LINEARS,
    rank: int = 4,
    seed: int = 0,
    dtype: Any = np.float32,
    std: float = 0.2,
    change: Callable[[dict[str, Any], Arrays], None] | None = None,
    **settings: Any,
) -> Path:
    """targets: the last part of the names of adapted modules. settings: of adapter_config.json. change: of the settings
    and tensors, before they are written."""
    random = np.random.default_rng(seed)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": list(targets),
        "bias": "none",
    }
    config |= settings
    tensors: Arrays = {}
    for name, weight in load_file(model / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if weight.ndim != 2 or module.rsplit(".", 1)[-1] not in targets:
            continue
        own = config.get("rank_pattern", {}).get(module.rsplit(".", 1)[-1], rank)
        outputs, inputs = weight.shape[::-1] if module.endswith("embed_tokens") else weight.shape
        a = random.normal(0, std, (own, inputs)).astype(dtype)
        b = random.normal(0, std, (outputs, own)).astype(dtype)
        keys = ("lora_embedding_A", "lora_embedding_B") if "embed" in module else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{PREFIX}{module}.{keys[0]}": a, f"{PREFIX}{module}.{keys[1]}": b}
    if change is not None:
        change(config, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merge(folder: Path, model: Path, adapter: Path) -> Path:
    """The model with scale * B A added to its matrices."""
    shutil.copytree(model, folder)
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights, tensors = load_file(model / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in tensors if "_A" in name]:
        module = name.removeprefix(PREFIX).rsplit(".lora_", 1)[0]
        a, b = tensors[name].astype(np.float64), tensors[name.replace("_A", "_B")].astype(np.float64)
        added = _scale(config, module.rsplit(".", 1)[-1]) * (b @ a)
        key = f"{module}.weight"
        weights[key] = (weights[key] + (added.T if "embedding" in name else added)).astype(np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _scale(config: Mapping[str, Any], name: str) -> float:
    rank = config.get("rank_pattern", {}).get(name, config["r"])
    alpha = config.get("alpha_pattern", {}).get(name, config["lora_alpha"])
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))
