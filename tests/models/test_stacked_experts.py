"""Stacks of experts in a folder: what does not fit is an error with the stack's own name."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from octavo.config import ModelConfig
from octavo.errors import ModelLoadError
from octavo.models.checkpoint import Checkpoint
from octavo.models.loader import open_checkpoint
from tests.tiny_models import make_tiny_model


def open_model(folder: Path) -> Checkpoint:
    return open_checkpoint(ModelConfig(model=str(folder)))


def test_a_stack_of_experts_that_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = make_tiny_model("granite-moe", tmp_path)
    saved, name = load_file(folder / "model.safetensors"), "model.layers.1.block_sparse_moe.input_linear.weight"
    for wrong in (saved[name][:4], saved[name][:, 1:], saved[name][0]):
        save_file(saved | {name: wrong.clone()}, folder / "model.safetensors")
        with pytest.raises(ModelLoadError, match=rf"'{name}' has shape .* asks for \[5, 160, 48\]"):
            open_model(folder)
    save_file({each: saved[each] for each in saved if each != name}, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=f"'{name}' is missing"):
        open_model(folder)
