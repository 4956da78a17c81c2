"""In which form a loaded model's quantised matrices are multiplied, for the start-up card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.kernels.ledger import Contents
from octavo.kernels.model import Model
from octavo.kernels.program.model_recording import ModelRecording
from octavo.kernels.tensor import BLOCK_DTYPES

_DENSE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def held_as(model: Model, held: Mapping[str, Any]) -> str:
    """ "gptq (U4 in groups of 128) in q_proj, k_proj: made float32". held: what the device has, by name."""
    recording = ModelRecording.of(model)
    kinds: dict[tuple[str, str], dict[str, None]] = {}
    contents = Contents.of((recording.body, recording.head))
    parts = [part for linear in contents.linears.values() for part in linear.parts]
    for part in (*parts, *(latent.up for latent in contents.latents.values())):
        stored = part.sources[0].dtype
        if part.scheme.format is not None or stored in BLOCK_DTYPES:
            name = part.scheme.name if part.scheme.format is not None else stored
            key = name, str(held[part.name].dtype).removeprefix("torch.")
            kinds.setdefault(key, {})[part.name.removesuffix(".weight").rpartition(".")[2]] = None
    return "; ".join(f"{name} in {', '.join(names)}: {_text(dtype)}" for (name, dtype), names in kinds.items())


def _text(dtype: str) -> str:
    dense = _DENSE.get(dtype, dtype)
    return f"made {dense} while loading" if dense in _DENSE.values() else "multiplied as they are"
