"""Rotary settings of a config.json, in both spellings, to RopeConfig.

    rope_theta, rope_scaling                        the base and its scaling separately
    rope_parameters                                 both in one object
    rope_parameters {"full_attention": {...}, ...}  one object for each kind of layer (Gemma 3)

Each kind of scaling has required and optional numbers. The result holds only those, checked for type and range, so
that later code need not check again.
"""

from __future__ import annotations

from typing import Any

from octavo.errors import UnsupportedModelError
from octavo.models.architecture import RopeConfig
from octavo.models.config_file import LARGEST_SIZE, ConfigFile
from octavo.shown import shown

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su")
#: bounds of factors and other ratios: far outside any real scaling, and safe in float32
SMALLEST_FACTOR, LARGEST_FACTOR = 1e-4, 1e6
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_FACTORS = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor")
_FROM_ZERO = ("mscale", "mscale_all_dim")
_LISTS = ("short_factor", "long_factor")
_BESIDE_SCALING = ("rope_theta", "partial_rotary_factor")


def rope_config(
    config: ConfigFile, default_theta: float = 10_000.0, layer_type: str = "", *, default_rotary_factor: float = 1.0
) -> RopeConfig:
    """layer_type: which of several settings to read."""
    given = _given(config, layer_type)
    outside = ConfigFile(config.path, {**config.values, **given.values}, config.within)
    rope_type = _rope_type(given)
    return RopeConfig(
        theta=outside.number("rope_theta", default_theta, above=1),
        partial_rotary_factor=outside.number("partial_rotary_factor", default_rotary_factor, above=0),
        scaling=None if rope_type == "default" else _scaling(config, given, rope_type),
    )


def local_rope_config(config: ConfigFile) -> RopeConfig:
    """Gemma 3's sliding layers, whose rope is never scaled unless rope_parameters says so."""
    if isinstance(config.inside("rope_parameters").values.get("sliding_attention"), dict):
        return rope_config(config, layer_type="sliding_attention")
    return RopeConfig(theta=config.number("rope_local_base_freq", 10_000.0, above=1))


def _given(config: ConfigFile, layer_type: str) -> ConfigFile:
    """Model cards say to add a rope_scaling, which counts, as in transformers, though the file has rope_parameters; the
    base is then still theirs."""
    given = config.inside("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    if layer_type and given.has(layer_type):
        return given.inside(layer_type)
    added = config.inside("rope_scaling")
    if not added.values or added.within == given.within:
        return given
    kept = {key: given.values[key] for key in _BESIDE_SCALING if given.has(key)}
    return ConfigFile(config.path, kept | added.values, added.within)


def _rope_type(given: ConfigFile) -> str:
    rope_type = given.values.get("rope_type") or given.values.get("type") or "default"
    if rope_type not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"{given.path}: {given.within.rstrip('.')}'s rope_type is {shown(rope_type)}; "
            f"Octavo knows {', '.join(ROPE_TYPES)}"
        )
    return str(rope_type)


def _scaling(config: ConfigFile, given: ConfigFile, rope_type: str) -> dict[str, Any]:
    """The scaling's own numbers. Phi-3 states its original length beside the scaling, not in it."""
    values = dict(given.values)
    if config.has("original_max_position_embeddings"):
        values.setdefault("original_max_position_embeddings", config.size("original_max_position_embeddings"))
    read = ConfigFile(given.path, values, given.within)
    for key in _REQUIRED.get(rope_type, ()):
        if not read.has(key):
            read.number(key)  # raises the error for a missing key
    scaling: dict[str, Any] = {"rope_type": rope_type}
    if read.has("original_max_position_embeddings"):
        scaling["original_max_position_embeddings"] = _original_len(read)
    bounds = {"least": SMALLEST_FACTOR, "most": LARGEST_FACTOR}
    scaling |= {key: read.number(key, **bounds) for key in _FACTORS if read.has(key)}
    scaling |= {key: read.number(key, least=0, most=LARGEST_FACTOR) for key in _FROM_ZERO if read.has(key)}
    scaling |= {key: read.numbers(key, **bounds) for key in _LISTS if read.has(key)}
    if read.has("truncate"):
        scaling["truncate"] = read.flag("truncate", True)
    return scaling


def _original_len(read: ConfigFile) -> int:
    """A whole number; 8192.0 counts as one."""
    number = read.number("original_max_position_embeddings", least=2, most=LARGEST_SIZE)
    if number != int(number):
        raise read.wrong("original_max_position_embeddings", f"2 to {LARGEST_SIZE}")
    return int(number)
