"""Rotary settings of a GGUF file, in Hugging Face's words; `rope_json.py` reads those of a config.json."""

from __future__ import annotations

from typing import Any

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import HostTensor
from octavo.models.architecture import RopeConfig
from octavo.models.gguf_metadata import GGUFMetadata
from octavo.models.rope_json import LARGEST_FACTOR, SMALLEST_FACTOR
from octavo.shown import shown

_BETAS = ("beta_fast", "beta_slow")
_FACTORS = {"least": SMALLEST_FACTOR, "most": LARGEST_FACTOR}


def gguf_rope(config: GGUFMetadata, default_theta: float = 10_000.0) -> RopeConfig:
    head_dim = config.head_dim
    return RopeConfig(
        theta=config.number("rope.freq_base", default_theta),
        partial_rotary_factor=config.size("rope.dimension_count", head_dim) / head_dim,
        scaling=_rope_scaling(config),
    )


def _rope_scaling(config: GGUFMetadata) -> dict[str, Any] | None:
    """In Hugging Face's words. GGUF stores llama3 and longrope scaling in tensors, as one divisor per frequency."""
    tensors, kind = config.file.tensors, config.text("rope.scaling.type", "linear")
    trained_len = config.size("rope.scaling.original_context_length", config.size("context_length"))
    if "rope_factors_long.weight" in tensors and "rope_factors_short.weight" in tensors:
        long, short = tensors["rope_factors_long.weight"], tensors["rope_factors_short.weight"]
        return _longrope(config, long, short, config.optional_number("rope.scaling.attn_factor", **_FACTORS))
    if "rope_freqs.weight" in tensors:
        return _longrope(config, tensors["rope_freqs.weight"], tensors["rope_freqs.weight"], 1.0)
    factor = _factor(config)
    if kind == "none" or (factor == 1 and not config.has("rope.scaling.type")):
        return None
    for key in ("attn_factor", "yarn_attn_factor"):
        if (extra := config.number(f"rope.scaling.{key}", 1.0)) != 1:
            raise UnsupportedModelError(f"{config.file.path}: rope.scaling.{key} is {extra}; allowed: 1")
    if kind in ("linear", "yarn"):
        states_len = kind == "yarn" or config.has("rope.scaling.original_context_length")
        original = {"original_max_position_embeddings": trained_len} if states_len else {}
        named = [key for key in _BETAS if kind == "yarn" and config.has(f"rope.scaling.yarn_{key}")]
        betas = {key: config.number(f"rope.scaling.yarn_{key}", **_FACTORS) for key in named}
        return {"rope_type": kind, "factor": factor, **original, **betas}
    raise UnsupportedModelError(
        f"{config.file.path}: {config.architecture}.rope.scaling.type is {shown(kind)}; "
        "Octavo knows none, linear, yarn, and longrope with its factor tensors"
    )


def _factor(config: GGUFMetadata) -> float:
    """Files of 2023 call it scale_linear. Some have a zero for none."""
    key = next((key for key in ("rope.scaling.factor", "rope.scale_linear") if config.has(key)), "")
    return config.number(key, **_FACTORS) if key and config.number(key) != 0 else 1.0


def _longrope(
    config: GGUFMetadata, long: HostTensor, short: HostTensor, attention_factor: float | None
) -> dict[str, Any]:
    original = config.size("rope.scaling.original_context_length", config.size("context_length"), smallest=2)
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": _divisors(config, long),
        "short_factor": _divisors(config, short),
        "original_max_position_embeddings": original,
    }
    return scaling if attention_factor is None else scaling | {"attention_factor": attention_factor}


def _divisors(config: GGUFMetadata, tensor: HostTensor) -> list[float]:
    values = dequantize(tensor).reshape(-1)
    if not ((values >= SMALLEST_FACTOR) & (values <= LARGEST_FACTOR)).all():  # a NaN is neither
        raise ModelLoadError(
            f"{config.file.path}: the rope factor tensors may hold numbers from {SMALLEST_FACTOR} to {LARGEST_FACTOR:g}"
        )
    return [float(value) for value in values.tolist()]
