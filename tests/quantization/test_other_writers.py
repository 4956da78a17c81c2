"""Other programs' configurations: they mean what those of the methods mean whose tensors they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.reference.dequantize import dequantize
from octavo.models.checkpoint import Checkpoint
from octavo.quantization.other_writers import as_known
from octavo.quantization.registry import SCHEMES
from tests.quantization.folders import dense_model, folder_of, matrices, opened

SHAPE = (64, 64)
UP, GATE = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate.weight"
#: NVIDIA's Llama 3.1 8B Instruct FP8, and the same in its older file
MODELOPT = {
    "config_groups": {"group_0": {"input_activations": {"dynamic": False, "num_bits": 8, "type": "float"}}},
    "ignore": ["lm_head", "model.layers.*.mlp.gate"],
    "quant_algo": "FP8",
    "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
    "producer": {"name": "modelopt", "version": "0.29.0"},
    "quant_method": "modelopt",
}
OLDER_MODELOPT = {
    "producer": {"name": "modelopt", "version": "0.23.0"},
    "quantization": {
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8",
        "exclude_modules": ["lm_head", "model.layers.*.mlp.gate"],
    },
}
AUTO_ROUND = {
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "data_type": "int",
    "iters": 200,
    "autoround_version": "0.5.1",
    "block_name_to_quantize": "model.layers",
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
}
FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["model.layers.0"]}
KV = {"num_bits": 8, "type": "float"}
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "modelopt": (
        MODELOPT,
        {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "modules_to_not_convert": MODELOPT["ignore"],
            "kv_cache_scheme": KV,
        },
    ),
    "fbgemm": (FBGEMM, {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0"]}),
    "auto-round": (AUTO_ROUND, {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "auto-round, some modules in another way": (
        AUTO_ROUND | {"extra_config": {UP[:-7]: {"bits": 8, "group_size": 64}, "lm_head": {"bits": 16}}},
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 32,
            "dynamic": {f"+:(?:{UP[:-7]})$": {"bits": 8, "group_size": 64}, "-:(?:lm_head)$": {}},
        },
    ),
    "auto-round, in AWQ's layout": (
        AUTO_ROUND | {"packing_format": "auto_round:auto_awq", "extra_config": {UP[:-7]: {"bits": 16}}},
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 32,
            "zero_point": False,
            "modules_to_not_convert": [UP[:-7]],
        },
    ),
    "bitsandbytes, before it stated its method": (
        {"load_in_8bit": True, "llm_int8_threshold": 6.0},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ),
}


def described(config: dict[str, Any]) -> Any:
    method, known = as_known(config)
    return SCHEMES[method](known)


@pytest.mark.parametrize("case", SAME)
def test_it_means_the_same(case: str) -> None:
    other, known = SAME[case]
    assert described(other) == described(known)


def test_older_modelopt_has_its_keys_inside_another() -> None:
    found = described({"quant_method": "modelopt", **OLDER_MODELOPT})
    assert found == described(MODELOPT)
    assert found.kv_cache == "fp8"
    assert found.scheme_of(UP, SHAPE) is not None
    assert found.scheme_of(GATE, SHAPE) is None


def test_a_module_of_auto_round_may_have_bits_of_its_own() -> None:
    found = described(SAME["auto-round, some modules in another way"][0])
    assert [found.scheme_of(name, SHAPE).format.label for name in (UP, UP.replace("up_", "down_"))] == [
        "I8 in groups of 64",
        "U4 in groups of 32",
    ]
    assert found.scheme_of("lm_head.weight", SHAPE) is None
    head = described(AUTO_ROUND | {"extra_config": {"lm_head": {"bits": 8}}}).scheme_of("lm_head.weight", SHAPE)
    assert head.format.label == "I8 in groups of 32"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MODELOPT | {"quant_algo": "NVFP4"}, "quantization_config.quant_algo is 'NVFP4'; Octavo reads: FP8, FP8_PER"),
        (MODELOPT | {"quant_algo": "MIXED_PRECISION"}, "quant_algo is 'MIXED_PRECISION'"),
        (MODELOPT | {"kv_cache_quant_algo": "NVFP4"}, "kv_cache_quant_algo is 'NVFP4'; Octavo reads: FP8"),
        (
            AUTO_ROUND | {"packing_format": "auto_round:fp8"},
            "is 'auto_round:fp8'; Octavo reads: auto_gptq",
        ),
        (AUTO_ROUND | {"data_type": "mx_fp"}, "data_type is 'mx_fp'; Octavo reads: 'int'"),
        (AUTO_ROUND | {"extra_config": {"lm_head": 3}}, "extra_config.lm_head is 3; allowed: an object"),
        (
            AUTO_ROUND | {"packing_format": "auto_awq", "extra_config": {"lm_head": {"bits": 8}}},
            "Octavo reads: modules with bits of 16",
        ),
        ({"quant_method": "quark"}, "asks for 'quark'; Octavo reads awq, .*, modelopt, fbgemm_fp8, auto-round, unq"),
    ],
)
def test_what_is_not_read_is_named(
    config: dict[str, Any], message: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = {"model_type": "llama", "quantization_config": config}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelLoadError, match=f"^(tensor|{tmp_path}).*{message}"):
        opened(tmp_path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("others")


def moved(good: Path, to: Path, name: str, content: dict[str, Any]) -> Path:
    """The same model with its quantization_config in a file of its own."""
    config = json.loads((good / "config.json").read_text())
    config.pop("quantization_config", None)
    (to / "config.json").write_text(json.dumps(config))
    (to / "model.safetensors").symlink_to(good / "model.safetensors")
    (to / name).write_text(json.dumps(content))
    return to


def numbers(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: dequantize(each.dense()).tobytes() for name, each in matrices(checkpoint).items()}


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("gptq", "quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}),
        ("awq", "quant_config.json", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}),
        ("fp8", "hf_quant_config.json", OLDER_MODELOPT),
        ("gptq-no-index", "quantization_config.json", AUTO_ROUND),
    ],
)
def test_a_file_beside_config_json_says_how_codes_are_stored(
    root: Path, tmp_path: Path, kind: str, name: str, content: dict[str, Any]
) -> None:
    good = folder_of(root, kind)
    found = opened(moved(good / "quantised", tmp_path, name, content))
    assert numbers(found) == numbers(opened(good / "dense"))
    (tmp_path / name).write_text(json.dumps(content | {"bits": 3, "w_bit": 3, "quantization": {"quant_algo": "NVFP4"}}))
    with pytest.raises(UnsupportedModelError, match=rf"^{tmp_path / name}: (bits|quantization\.quant_algo) is"):
        opened(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelLoadError, match="no quantization_config"):
        matrices(opened(tmp_path))


def test_a_dense_model_has_no_use_for_such_a_file(root: Path, tmp_path: Path) -> None:
    """Converters to ONNX leave one behind."""
    source = dense_model(root)
    found = opened(moved(source, tmp_path, "quantize_config.json", {"per_channel": True, "reduce_range": True}))
    assert found.architecture.quantization is None
    assert numbers(found) == numbers(opened(source))


def test_a_scale_for_each_output_may_be_a_row(root: Path, tmp_path: Path) -> None:
    good = folder_of(root, "fp8-outputs")
    saved = load_file(good / "quantised/model.safetensors")
    rows = {name: scale.reshape(-1) for name, scale in saved.items() if name.endswith("weight_scale")}
    save_file(saved | rows, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((good / "quantised/config.json").read_text())
    assert numbers(opened(tmp_path)) == numbers(opened(good / "dense"))
