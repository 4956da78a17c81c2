"""Rotary tables against transformers' own initialisers, for every scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.attention_layer import RotaryTable
from octavo.layers.rotary import RotarySetting, rotary_table

HEAD_DIM = 32
TRAINED_LEN = 512
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": np.linspace(1.0, 1.6, HEAD_DIM // 2).tolist(),
    "long_factor": np.linspace(1.0, 9.0, HEAD_DIM // 2).tolist(),
    "original_max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def expected(scaling: dict[str, Any], max_len: int, *, theta: float, partial: float = 1.0) -> RotaryTable:
    """The table that transformers' frequencies give."""
    config = LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=TRAINED_LEN,
        rope_parameters={"rope_theta": theta, "partial_rotary_factor": partial, **scaling},
    )
    inv_freq, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"), seq_len=max_len)
    angles = torch.arange(max_len).float()[:, None] * inv_freq[None, :]
    return RotaryTable((angles.cos() * factor).numpy(), (angles.sin() * factor).numpy())


def assert_same(table: RotaryTable, reference: RotaryTable) -> None:
    # an ulp of difference in a frequency near 1 grows to 512 ulp at the last position
    np.testing.assert_allclose(table.cos, reference.cos, atol=1e-4)
    np.testing.assert_allclose(table.sin, reference.sin, atol=1e-4)
    assert table.cos.dtype == table.sin.dtype == np.float32


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        LLAMA3,
        LLAMA3 | {"high_freq_factor": 2.0, "factor": 32.0},
        YARN,
        YARN | {"beta_fast": 16.0, "beta_slow": 2.0},
        YARN | {"attention_factor": 1.25},
        YARN | {"truncate": False},
        YARN | {"mscale": 0.707, "mscale_all_dim": 1.0},
        LONGROPE,
        LONGROPE | {"attention_factor": 1.19},
        LONGROPE | {"factor": 32.0},
    ],
    ids=lambda scaling: "-".join(k if k != "rope_type" else v for k, v in scaling.items() if "max_pos" not in k),
)
def test_scaling_equals_transformers(scaling: dict[str, Any], theta: float) -> None:
    setting = RotarySetting(theta=theta, rotary_dim=HEAD_DIM, trained_len=TRAINED_LEN, scaling=scaling)
    for max_len in (100, 512, 900):  # short and long factors; below and beyond the trained length
        assert_same(rotary_table(setting, max_len), expected(scaling, max_len, theta=theta))


def test_plain_rope_is_its_formula() -> None:
    table = rotary_table(RotarySetting(theta=10_000.0, rotary_dim=8, trained_len=64), 64)
    angles = np.arange(64)[:, None] / 10_000.0 ** (np.arange(4) / 4)[None, :]
    assert_same(table, RotaryTable(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)))
    assert table.rotary_dim == 8


def test_partial_rotation_spreads_frequencies_over_the_rotated_part() -> None:
    scaling = {"rope_type": "linear", "factor": 1.0}
    table = rotary_table(RotarySetting(theta=1e4, rotary_dim=24, trained_len=TRAINED_LEN, scaling=scaling), 50)
    assert_same(table, expected(scaling, 50, theta=1e4, partial=0.75))


def test_old_names_of_the_type_are_read() -> None:
    new = rotary_table(RotarySetting(theta=1e4, rotary_dim=HEAD_DIM, trained_len=TRAINED_LEN, scaling=LONGROPE), 300)
    old_words = {("type" if k == "rope_type" else k): ("su" if v == "longrope" else v) for k, v in LONGROPE.items()}
    old = rotary_table(RotarySetting(theta=1e4, rotary_dim=HEAD_DIM, trained_len=TRAINED_LEN, scaling=old_words), 300)
    np.testing.assert_array_equal(new.cos, old.cos)


def test_unknown_type_names_the_known_ones() -> None:
    setting = RotarySetting(theta=1e4, rotary_dim=8, trained_len=64, scaling={"rope_type": "spiral"})
    with pytest.raises(UnsupportedModelError, match=r"'spiral'.*dynamic, linear, llama3, longrope"):
        rotary_table(setting, 64)


@pytest.mark.parametrize("missing", ["factor", "low_freq_factor"])
def test_missing_number_is_named(missing: str) -> None:
    scaling = {key: value for key, value in LLAMA3.items() if key != missing}
    with pytest.raises(ModelLoadError, match=rf"'llama3' needs '{missing}'"):
        rotary_table(RotarySetting(theta=1e4, rotary_dim=8, trained_len=64, scaling=scaling), 64)


def test_wrong_number_of_longrope_factors_is_refused() -> None:
    setting = RotarySetting(theta=1e4, rotary_dim=HEAD_DIM, trained_len=64, scaling=LONGROPE | {"long_factor": [1.0]})
    with pytest.raises(ModelLoadError, match=r"long_factor holds 1 factors.*need 16"):
        rotary_table(setting, 500)


@pytest.mark.parametrize("rotary_dim", [0, 7])
def test_dimensions_rotate_in_pairs(rotary_dim: int) -> None:
    with pytest.raises(ModelLoadError, match=rf"rotates {rotary_dim} dimensions.*even"):
        rotary_table(RotarySetting(theta=1e4, rotary_dim=rotary_dim, trained_len=64), 64)
