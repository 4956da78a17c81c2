"""What published GGUF files say in older words, or leave out: read, or an error with the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf")

from octavo.config import ModelConfig
from octavo.errors import ModelLoadError
from octavo.models.architecture import Architecture
from octavo.models.checkpoint import Checkpoint
from octavo.models.context_len import context_len
from octavo.models.loader import open_checkpoint
from tests.models.gguf_files import TINY_LLAMA, Tensor, tiny_llama_tensors, write_gguf


def opened(folder: Path, changes: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Checkpoint:
    """TINY_LLAMA with other metadata, None: without it, and further tensors."""
    values = {key: value for key, value in (TINY_LLAMA | changes).items() if value is not None}
    path = write_gguf(folder / "m.gguf", "llama", values, {**tiny_llama_tensors(), **(tensors or {})})
    return open_checkpoint(ModelConfig(model=str(path)))


def architecture(folder: Path, changes: dict[str, Any]) -> Architecture:
    return opened(folder, {f"llama.rope.{key}": value for key, value in changes.items()}).architecture


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"scale_linear": 4.0}, 4.0),
        ({"scaling.factor": 4.0}, 4.0),
        ({"scaling.factor": 2.0, "scale_linear": 4.0}, 2.0),
        ({"scaling.type": "linear", "scaling.factor": 4.0}, 4.0),
        ({"scale_linear": 1.0}, None),
        ({"scaling.factor": 0.0}, None),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None),
        ({}, None),
    ],
)
def test_a_scaling_without_a_kind_is_linear(tmp_path: Path, keys: dict[str, Any], factor: float | None) -> None:
    """As in files of 2023, and in llama.cpp."""
    found = architecture(tmp_path, keys)
    assert found.rope is not None
    assert found.rope.scaling == (None if factor is None else {"rope_type": "linear", "factor": factor})
    assert context_len(found) == 128 * (factor or 1)


def test_a_scaling_that_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"llama\.rope\.scale_linear' is -2\.0; allowed: a number from 0\.0001"):
        architecture(tmp_path, {"scale_linear": -2.0})


def test_what_norms_add_is_never_guessed(tmp_path: Path) -> None:
    key = "llama.attention.layer_norm_rms_epsilon"
    assert opened(tmp_path, {}).architecture.norm_eps == pytest.approx(1e-5)
    assert opened(tmp_path, {key: None, "llama.attention.layer_norm_epsilon": 0.25}).architecture.norm_eps == 0.25
    with pytest.raises(ModelLoadError, match=f"key '{key}' is missing"):
        opened(tmp_path, {key: None})


def test_a_llama_with_biases_of_queries_keys_and_values_alone_has_them(tmp_path: Path) -> None:
    """Qwen's models are published in Llama's shape."""
    rows = {"attn_q": 32, "attn_k": 16, "attn_v": 16}
    biases = {f"blk.{i}.{name}.bias": np.arange(n, dtype=np.float32) for i in (0, 1) for name, n in rows.items()}
    found = opened(tmp_path, {}, dict(biases))
    assert found.architecture.family == "qwen2"
    bias = found.take("model.layers.1.self_attn.q_proj.bias", (32,)).read().data.view(np.float32)
    assert bias[:8].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]  # rotary pairs are half a head apart
    assert opened(tmp_path, {}).architecture.family == "llama"
