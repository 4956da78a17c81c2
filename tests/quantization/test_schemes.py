"""A scheme that no backend knows: its file and its line in `SCHEMES` are enough to load a model and run it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from octavo.config import ModelConfig
from octavo.errors import UnsupportedModelError
from octavo.kernels.device import Device
from octavo.kernels.parameters import Shape
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import Cut, HostTensor, StoredTensor, from_array
from octavo.models.loader import open_checkpoint
from octavo.quantization.described import Everywhere
from octavo.quantization.registry import SCHEMES
from tests.conftest import TinyFolder
from tests.models.drive import Driver, DriverSetting

PROMPT = {0: [3, 5, 8, 13]}


@dataclass(frozen=True)
class RowScaled:
    """Each row of a matrix is stored divided by its own scale."""

    name: str = "row_scaled"
    format: None = None
    block_len: int = 1

    def tensors(self, name: str, shape: Shape) -> dict[str, Shape]:
        return {name: shape, f"{name}_scale": shape[:1]}

    def part(self, sources: tuple[StoredTensor, ...], cut: Cut) -> tuple[StoredTensor, ...]:
        raise AssertionError("the model is whole")

    def compact(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        return self.dense(sources)

    def dense(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        weight, scale = (dequantize(source.read()) for source in sources)
        return from_array(weight * scale[:, None])


def row_scaled(folder: Path, to: Path) -> Path:
    """The same model; scales are powers of two, so that no product is rounded."""
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "row_scaled"}}
    to.mkdir()
    (to / "config.json").write_text(json.dumps(config))
    tensors, rng = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    for name in [name for name in tensors if "_proj" in name]:
        scale = np.exp2(rng.integers(-2, 3, len(tensors[name]))).astype(np.float32)
        tensors |= {name: tensors[name] / scale[:, None], f"{name}_scale": scale}
    save_file(tensors, to / "model.safetensors")
    return to


def test_a_model_of_a_new_scheme_runs_on_every_host_backend(
    backend: Device, tiny_folder: TinyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCHEMES, "row_scaled", lambda described: Everywhere(RowScaled()))
    plain = tiny_folder("llama")
    logits = []
    for folder in (plain, row_scaled(plain, tmp_path / "scaled")):
        checkpoint = open_checkpoint(ModelConfig(model=str(folder)))
        logits.append(Driver(backend, checkpoint.architecture, checkpoint, DriverSetting()).step(PROMPT)[0])
        assert checkpoint.leftovers() == []
    np.testing.assert_array_equal(*logits)


def test_an_unknown_method_is_refused_by_name(tiny_folder: TinyFolder, tmp_path: Path) -> None:
    folder = row_scaled(tiny_folder("llama"), tmp_path / "scaled")
    with pytest.raises(UnsupportedModelError, match="asks for 'row_scaled'"):
        open_checkpoint(ModelConfig(model=str(folder)))
