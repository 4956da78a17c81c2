"""Malformed quantised checkpoints: an error of ours that names the file, the key or the tensor; never another."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.errors import ModelLoadError, OctavoError, UnsupportedModelError
from tests.models.mutations import mutated_json
from tests.quantization.folders import folder_of, matrices, opened
from tests.quantization.written import Tensors
from tests.quantization.written_models import WRITTEN

NUM_SEEDS = 12
Change = Callable[[Tensors], Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("malformed")


@pytest.mark.parametrize("kind", WRITTEN)
def test_changed_files_end_in_numbers_or_in_an_error_of_ours(root: Path, tmp_path: Path, kind: str) -> None:
    good = folder_of(root, kind) / "quantised"
    config, content = json.loads((good / "config.json").read_text()), (good / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, errors = json.loads(content[8 : 8 + size]), 0
    for seed in range(NUM_SEEDS):
        rng = random.Random(seed)
        described, changed = config["quantization_config"], content
        if seed % 3:
            described = _object(mutated_json(rng, described))
        else:
            names = [name for name in header if "layers.0.mlp.up_proj" in name]
            text = json.dumps(header | _object(mutated_json(rng, {name: header[name] for name in names}))).encode()
            changed = struct.pack("<Q", len(text)) + text + content[8 + size :]
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": described}))
        (tmp_path / "model.safetensors").write_bytes(changed)
        if said := _read(tmp_path):
            errors += 1
            assert str(tmp_path) in said or "tensor" in said, f"seed {seed}: {said}"
            assert len(said) < 2000
    assert errors, "some change is noticed"


def _read(folder: Path) -> str:
    """What is wrong with it; an error that is not ours is raised."""
    try:
        _numbers(folder)
    except OctavoError as error:
        return str(error)
    return ""


def _numbers(folder: Path) -> None:
    for part in matrices(opened(folder)).values():
        part.dense()


def _object(content: bytes) -> dict[str, Any]:
    """The changed object, if it still is one."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _nan(suffix: str) -> Change:
    return lambda tensors: tensors[suffix].view(-1)[:1].fill_(float("nan"))


def _put(suffix: str, value: Any) -> Change:
    return lambda tensors: tensors.__setitem__(suffix, value)


#: kind, change of a matrix's tensors, what the error says
TENSORS: dict[str, tuple[str, Change, str]] = {
    "scales that are no numbers": ("gptq", _nan("scales"), "up_proj.qweight'.*its scales are not all finite"),
    "codes that are no numbers": ("fp8-blocks", _nan("weight"), "up_proj.weight' has codes that are no numbers"),
    "scales of fewer groups": (
        "awq",
        _put("scales", torch.ones(1, 192).half()),
        r"scales' has shape \[1, 192\]",
    ),
    "scales of integers": (
        "fp8",
        _put("weight_scale", torch.tensor([1])),
        "weight_scale' has dtype I64, and fp8",
    ),
    "codes of another type": (
        "ct-w8a8",
        _put("weight", torch.ones(192, 64)),
        "weight' has dtype F32, and comp",
    ),
    "a group that is not there": (
        "gptq-sorted",
        _put("g_idx", torch.full((64,), 9).int()),
        "names groups 0 to 9",
    ),
    "inputs sorted in secret": ("gptq", _put("g_idx", torch.ones(64).int().cumsum(0).int()), "g_idx'"),
    "zeros in secret": ("gptq", _put("qzeros", torch.zeros(2, 24).int()), "qzeros' has zeros out of the middle"),
    "a shape that is another's": ("ct-w4a16", _put("weight_shape", torch.tensor([3, 4])), r"weight_shape' is \[3, 4\]"),
    "an activation scale of zero": ("fp8", _put("input_scale", torch.tensor(0.0)), "input_scale' is 0.0, allowed are"),
    "an exponent that is none": (
        "ct-mxfp4",
        _put("weight_scale", torch.full((192, 2), 255).to(torch.uint8)),
        "weight_scale' has the exponent 255",
    ),
    "a state that is no JSON": (
        "bnb-nf4",
        _put("weight.quant_state.bitsandbytes__nf4", torch.zeros(9).to(torch.uint8)),
        "bitsandbytes__nf4' is not valid JSON",
    ),
    "other sixteen numbers": ("bnb-nf4", _put("weight.quant_map", torch.zeros(16)), "quant_map' has other numbers"),
    "no zeros": (
        "ct-w4a16-zeros",
        lambda tensors: tensors.pop("weight_zero_point"),
        r"weight_zero_point' of .* missing",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_malformed_tensor_is_named(root: Path, tmp_path: Path, case: str) -> None:
    kind, change, message = TENSORS[case]
    good = folder_of(root, kind) / "quantised"
    stem = "model.layers.1.mlp.up_proj."
    tensors = load_file(good / "model.safetensors")
    own = {name.removeprefix(stem): tensors.pop(name) for name in list(tensors) if name.startswith(stem)}
    change(own)
    save_file(tensors | {stem + suffix: each for suffix, each in own.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((good / "config.json").read_text())
    with pytest.raises(ModelLoadError, match=message):
        _numbers(tmp_path)


CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "bits of three": ("gptq", {"bits": 3}, "quantization_config.bits is 3; Octavo reads: 4, 8"),
    "a group of five": ("awq", {"group_size": 5}, "group_size is 5; Octavo reads: -1 and multiples of 8"),
    "a group that does not divide": ("gptq", {"group_size": 48}, "q_proj.weight' has 64 inputs, which gptq"),
    "another layout": ("awq", {"version": "gemv"}, "version is 'gemv'; Octavo reads: gemm"),
    "marlin": ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; Octavo reads: gptq, gptq_v2"),
    "blocks of one size": ("fp8", {"weight_block_size": [128]}, r"weight_block_size is \[128\]"),
    "another float": ("fp8", {"fmt": "e5m2"}, "fmt is 'e5m2'; Octavo reads: 'e4m3'"),
    "fp4": ("bnb-nf4", {"bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type is 'fp4'; Octavo reads: nf4"),
    "sparse": ("ct-w8a8", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format is 'sparse-24"),
    "nvfp4": (
        "ct-w4a16",
        {"format": "nvfp4-pack-quantized"},
        "format is 'nvfp4-pack-quantized'; Octavo reads: float",
    ),
    "a pattern that is none": ("ct-w4a16", {"ignore": ["re:["]}, r"has the pattern '\['"),
    "no groups": ("ct-w4a16", {"config_groups": {}}, "config_groups is {}; Octavo reads: 1 to"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_malformed_description_is_named(root: Path, tmp_path: Path, case: str) -> None:
    kind, changes, message = CONFIGS[case]
    config = json.loads((folder_of(root, kind) / "quantised/config.json").read_text())
    config["quantization_config"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder_of(root, kind) / "quantised/model.safetensors")
    with pytest.raises(ModelLoadError, match=f"^{tmp_path}.*{message}"):
        opened(tmp_path)


def test_codes_without_a_description_are_refused(root: Path, tmp_path: Path) -> None:
    good = folder_of(root, "fp8") / "quantised"
    config = json.loads((good / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(good / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"_proj.weight' has dtype F8_E4M3, but no quantization_config"):
        matrices(opened(tmp_path))


def test_ignored_and_mixed_layers_are_as_the_file_says(root: Path, tmp_path: Path) -> None:
    """Layer 0 in int8 by name, layer 1 in nibbles by class; one matrix of it ignored and dense."""
    whole = {name: load_file(folder_of(root, kind) / "quantised/model.safetensors") for name, kind in
             (("nibbles", "ct-w4a16"), ("bytes", "ct-w8a8"))}  # fmt: skip
    dense = load_file(folder_of(root, "ct-w8a8") / "dense/model.safetensors")
    ignored = "model.layers.1.mlp.up_proj"
    tensors = {name: each for name, each in whole["nibbles"].items() if "layers.0" not in name and ignored not in name}
    tensors |= {name: each for name, each in whole["bytes"].items() if "layers.0" in name}
    tensors[f"{ignored}.weight"] = dense[f"{ignored}.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    nibbles, described = (WRITTEN[kind].config["config_groups"]["group_0"] for kind in ("ct-w4a16", "ct-w8a8"))
    config = json.loads((folder_of(root, "ct-w4a16") / "quantised/config.json").read_text())
    config["quantization_config"] |= {
        "format": "mixed-precision",
        "ignore": ["lm_head", "re:.*1.mlp.up_proj$"],
        "config_groups": {
            "all": nibbles | {"format": "pack-quantized"},
            "first": described | {"targets": [r"re:model\.layers\.0\..*"], "format": "int-quantized"},
        },
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = opened(tmp_path)
    schemes = {name: part.scheme.name for name, part in matrices(checkpoint).items()}
    assert schemes["model.layers.0.mlp.up_proj.weight"] == "compressed-tensors (I8 per output)"
    assert schemes["model.layers.1.mlp.down_proj.weight"] == "compressed-tensors (U4 in groups of 32)"
    assert schemes[f"{ignored}.weight"] == "dense"
    assert checkpoint.architecture.quantization is not None
    assert checkpoint.architecture.quantization.kv_cache == "fp8"
