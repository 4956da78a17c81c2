"""What a file's tensors say takes precedence: matrices that the configuration counts as quantised, and are dense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from octavo.errors import ModelLoadError
from octavo.kernels.reference.device import ReferenceDevice
from tests.models.drive import Driver, DriverSetting
from tests.quantization.folders import EXPERTS, SIZES, dense_model, folder_of, opened
from tests.quantization.written_models import is_projection, write_model
from tests.tiny_models import make_tiny_model

PROMPT = {0: [3, 5, 8, 13, 21, 34]}
#: as Kimi K2 Thinking is published: its router is no Linear module, and not in the list
KIMI = {
    "ignore": [
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
    ]
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stored")


def logits(folder: Path) -> NDArray[np.float32]:
    checkpoint = opened(folder)
    found = Driver(ReferenceDevice(), checkpoint.architecture, checkpoint, DriverSetting()).step(PROMPT)[0]
    assert not [name for name in checkpoint.leftovers() if name.endswith("weight")]
    return found


def schemes(folder: Path) -> dict[str, Any]:
    """Of the matrices whose numbers are codes, by name."""
    architecture = opened(folder).architecture
    assert architecture.quantization is not None
    names = [f"model.layers.1.{name}.weight" for name in ("self_attn.o_proj", "mlp.gate", "mlp.experts.0.down_proj")]
    return {name: architecture.quantization.scheme_of(name, (64, 64)) for name in names}


def of_experts(name: str) -> bool:
    return ".mlp.experts." in name


def not_in_the_first_mlp(name: str) -> bool:
    return is_projection(name) and ".0.mlp." not in name


def no_other_expert(name: str) -> bool:
    return is_projection(name) and ".experts.1.up_proj" not in name


@pytest.mark.parametrize(
    ("family", "sizes", "kind", "chosen", "changes"),
    [
        ("deepseek-v3", {"hidden_size": 64, "moe_intermediate_size": 32}, "ct-w4a16", of_experts, KIMI),
        ("qwen3-moe", SIZES | EXPERTS, "ct-w4a16", no_other_expert, {}),
        ("llama", SIZES, "awq", not_in_the_first_mlp, {}),
        ("llama", SIZES, "bnb-nf4-nested", not_in_the_first_mlp, {}),
        ("llama", SIZES, "fp8-blocks", not_in_the_first_mlp, {"modules_to_not_convert": ["model.layers.[0].mlp"]}),
        ("granite-moe", SIZES | {"intermediate_size": 96}, "ct-w4a16", is_projection, {}),
        ("gpt-oss", SIZES | {"layer_types": ["full_attention"] * 2}, "ct-w4a16", is_projection, {}),
    ],
)
def test_a_matrix_that_is_dense_in_the_file_is_read_so(
    tmp_path: Path,
    family: str,
    sizes: dict[str, Any],
    kind: str,
    chosen: Callable[[str], bool],
    changes: dict[str, Any],
) -> None:
    source = make_tiny_model(family, tmp_path / "source", **sizes)
    write_model(kind, source, tmp_path / "quantised", tmp_path / "dense", chosen, **changes)
    np.testing.assert_array_equal(logits(tmp_path / "quantised"), logits(tmp_path / "dense"))


def test_a_warning_names_what_is_dense_unless_it_chooses_experts(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model("awq", dense_model(root), tmp_path / "some", tmp_path / "dense", not_in_the_first_mlp)
    opened(tmp_path / "some")
    assert "some: 3 matrices that quantization_config counts as awq are dense in the file, and read so: " in caplog.text
    assert "layers.0.mlp.gate_proj.weight" in caplog.text
    caplog.clear()
    found = schemes(folder_of(root, "ct-w4a16", "qwen3-moe") / "quantised")
    assert [scheme is not None for scheme in found.values()] == [True, False, True]
    assert not caplog.text


def test_a_matrix_with_codes_beside_it_is_not_dense(root: Path, tmp_path: Path) -> None:
    good = folder_of(root, "ct-w4a16") / "quantised"
    name, saved = "model.layers.0.mlp.up_proj", load_file(good / "model.safetensors")
    dense = load_file(dense_model(root) / "model.safetensors")[f"{name}.weight"]
    (tmp_path / "config.json").write_text((good / "config.json").read_text())
    save_file(saved | {f"{name}.weight": dense}, tmp_path / "model.safetensors")
    checkpoint = opened(tmp_path)
    assert f"{name}.weight_packed" in checkpoint.stored
    assert checkpoint.architecture.quantization == opened(good).architecture.quantization
    del saved[f"{name}.weight_packed"]
    save_file(saved | {f"{name}.weight": dense}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"up_proj\.weight_packed'"):
        opened(tmp_path)


def test_a_matrix_of_another_size_is_not_taken_for_dense(root: Path, tmp_path: Path) -> None:
    source = dense_model(root)
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    saved, name = load_file(source / "model.safetensors"), "model.layers.0.mlp.up_proj.weight"
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(saved | {name: saved[name][:, 1:].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"up_proj.weight(_scale)?'"):
        opened(tmp_path)
