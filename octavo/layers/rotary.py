"""Rotary tables: base frequencies, how each scaling changes them, and the resulting cosines and sines.

Pair i of a head turns by `position * inv_freq[i]`; inv_freq falls from 1 towards 1/theta. Long-context scalings
slow the slow pairs down, so that positions beyond the trained ones turn by angles seen in training:

    linear      every pair slowed by `factor`
    dynamic     theta raised to suit the length (NTK-aware)
    llama3      fast pairs kept, slow pairs slowed, a ramp between
    yarn        the same, with the ramp given in rotations, and attention sharpened (Peng et al. 2023)
    longrope    one factor for each pair, found by search (Ding et al. 2024)

`dynamic` and `longrope` depend on the length of the text. Cached keys cannot be rotated again, so the longest
allowed length, `max_len`, is used, and one table serves every request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.attention_layer import RotaryTable

Frequencies = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RotarySetting:
    """scaling: Hugging Face's dict; None is plain rope. trained_len: the model's max_position_embeddings."""

    theta: float
    rotary_dim: int
    trained_len: int
    scaling: Mapping[str, Any] | None = None

    @property
    def rope_type(self) -> str:
        scaling = self.scaling or {}
        return str(scaling.get("rope_type", scaling.get("type", "default")))

    def number(self, key: str, default: float | None = None) -> float:
        value = (self.scaling or {}).get(key)
        if value is not None:
            return float(value)
        if default is None:
            raise ModelLoadError(
                f"rope_scaling of type {self.rope_type!r} needs {key!r}, which the checkpoint leaves out"
            )
        return default

    @property
    def original_len(self) -> float:
        """The context length before the stretch."""
        return self.number("original_max_position_embeddings", float(self.trained_len))

    @property
    def stretch(self) -> float:
        return self.trained_len / self.original_len


def rotary_table(setting: RotarySetting, max_len: int) -> RotaryTable:
    """Cosines and sines for positions 0 .. max_len - 1, times the scaling's attention factor."""
    if setting.rope_type not in SCALINGS:
        raise UnsupportedModelError(
            f"rope_scaling has type {setting.rope_type!r}; Octavo knows {', '.join(sorted(SCALINGS))}"
        )
    if setting.rotary_dim < 2 or setting.rotary_dim % 2:
        raise ModelLoadError(
            f"the model rotates {setting.rotary_dim} dimensions of a head; they turn in pairs, so it must be an even "
            "number, 2 or more: check head_dim and partial_rotary_factor"
        )
    frequencies, attention_factor = SCALINGS[setting.rope_type](setting, max_len)
    # Rounded to float32 before and after the product: models were trained with this arithmetic.
    inv_freq = frequencies.astype(np.float32)
    angles = np.arange(max_len, dtype=np.float32)[:, None] * inv_freq[None, :]
    factor = np.float32(attention_factor)
    return RotaryTable(cos=np.cos(angles) * factor, sin=np.sin(angles) * factor)


def _plain(setting: RotarySetting, theta: float | None = None) -> Frequencies:
    exponents = np.arange(0, setting.rotary_dim, 2, dtype=np.float64) / setting.rotary_dim
    return np.asarray((setting.theta if theta is None else theta) ** -exponents, dtype=np.float64)


def _default(setting: RotarySetting, max_len: int) -> tuple[Frequencies, float]:
    return _plain(setting), 1.0


def _linear(setting: RotarySetting, max_len: int) -> tuple[Frequencies, float]:
    return _plain(setting) / setting.number("factor"), 1.0


def _dynamic(setting: RotarySetting, max_len: int) -> tuple[Frequencies, float]:
    factor, trained, dim = setting.number("factor"), setting.trained_len, setting.rotary_dim
    stretch = factor * max(max_len, trained) / trained - (factor - 1)
    return _plain(setting, setting.theta * stretch ** (dim / (dim - 2))), 1.0


def _llama3(setting: RotarySetting, max_len: int) -> tuple[Frequencies, float]:
    plain = _plain(setting)
    low, high = setting.number("low_freq_factor"), setting.number("high_freq_factor")
    rotations = setting.original_len * plain / (2 * math.pi)  # full turns within the original context
    keep = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    return plain * (keep + (1 - keep) / setting.number("factor")), 1.0


def _yarn(setting: RotarySetting, max_len: int) -> tuple[Frequencies, float]:
    plain = _plain(setting)
    factor = setting.number("factor", setting.stretch)
    first, last = _yarn_ramp(setting)
    slowed = np.clip((np.arange(len(plain)) - first) / (last - first), 0.0, 1.0)
    return plain * ((1 - slowed) + slowed / factor), _yarn_attention_factor(setting, factor)


def _yarn_ramp(setting: RotarySetting) -> tuple[float, float]:
    """The pairs at which the ramp begins and ends: they make beta_fast and beta_slow turns in the original context."""

    def pair_of(turns: float) -> float:
        wavelength = setting.original_len / (turns * 2 * math.pi)
        return setting.rotary_dim * math.log(wavelength) / (2 * math.log(setting.theta))

    first, last = pair_of(setting.number("beta_fast", 32.0)), pair_of(setting.number("beta_slow", 1.0))
    if (setting.scaling or {}).get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, setting.rotary_dim - 1)
    return first, last if last > first else first + 0.001


def _yarn_attention_factor(setting: RotarySetting, factor: float) -> float:
    def sharpen(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, mscale_all_dim = setting.number("mscale", 0.0), setting.number("mscale_all_dim", 0.0)
    both = sharpen(mscale) / sharpen(mscale_all_dim) if mscale and mscale_all_dim else sharpen(1.0)
    return setting.number("attention_factor", both)


def _longrope(setting: RotarySetting, max_len: int) -> tuple[Frequencies, float]:
    original = setting.original_len
    key = "long_factor" if max_len > original else "short_factor"
    factors = np.asarray((setting.scaling or {}).get(key, ()), dtype=np.float64)
    if factors.shape != (setting.rotary_dim // 2,):
        raise ModelLoadError(
            f"rope_scaling's {key} holds {factors.size} factors; {setting.rotary_dim} rotated dimensions "
            f"need {setting.rotary_dim // 2}"
        )
    stretch = setting.number("factor", setting.stretch)
    default = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    return _plain(setting) / factors, setting.number("attention_factor", default)


SCALINGS: dict[str, Callable[[RotarySetting, int], tuple[Frequencies, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # longrope's name in the first Phi-3 checkpoints
}
