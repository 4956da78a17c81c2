"""quantization_config as known publishers write it: which matrices it counts, and in which format."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.quantization.described import Quantization
from octavo.quantization.registry import SCHEMES
from tests.quantization.written_models import WRITTEN

#: keys that say how a file was made, or are null in it
_MADE = {"block_structure": None, "dynamic": False, "observer": "minmax", "observer_kwargs": {}, "actorder": None}
_NEWER = _MADE | {"scale_dtype": None, "zp_dtype": None}
_AROUND = {
    "global_compression_ratio": None,
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "sparsity_config": {},
    "transform_config": {},
    "version": "0.12.2",
}


def _group(form: str | None, targets: list[str], inputs: dict[str, Any] | None, **weights: Any) -> dict[str, Any]:
    return {
        "format": form,
        "input_activations": inputs,
        "output_activations": None,
        "targets": targets,
        "weights": _NEWER | {"symmetric": True, "type": "int", "group_size": None} | weights,
    }


_BY_TOKEN = _NEWER | {"num_bits": 8, "strategy": "token", "symmetric": True, "dynamic": True, "observer": None}
_ATTENTION, _MLP = "model.layers.3.self_attn.o_proj", "model.layers.3.mlp.down_proj"
_ROUTER, _EXPERT = "model.layers.3.mlp.gate", "model.layers.3.mlp.experts.7.down_proj"
_SHARED = "model.layers.3.mlp.shared_experts.down_proj"
_FP8_BLOCKS = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
#: the configuration, and the format of each module
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, str | None]]] = {
    "moonshotai/Kimi-K2-Thinking": (
        _AROUND
        | {
            "config_groups": {"group_0": _group(None, ["Linear"], None, num_bits=4, strategy="group", group_size=32)},
            "format": "pack-quantized",
            "ignore": [
                "lm_head",
                "re:.*self_attn.*",
                "re:.*shared_experts.*",
                "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
            ],
        },
        {_ATTENTION: None, _MLP: None, _SHARED: None, _EXPERT: "U4 in groups of 32", "lm_head": None},
    ),
    "RedHatAI, FP8 dynamic": (
        _AROUND
        | {
            "config_groups": {
                "group_0": _group(
                    "float-quantized",
                    ["Linear"],
                    _BY_TOKEN | {"type": "float"},
                    num_bits=8,
                    type="float",
                    strategy="channel",
                )
            },
            "format": "float-quantized",
            "ignore": ["lm_head", "re:.*mlp.gate$"],
        },
        {_ATTENTION: "F8_E4M3 per output", _EXPERT: "F8_E4M3 per output", _ROUTER: None, "lm_head": None},
    ),
    "RedHatAI, two formats": (
        _AROUND
        | {
            "config_groups": {
                "group_0": _group(
                    "float-quantized",
                    ["re:.*self_attn\\.(q|k|v|o)_proj$"],
                    _BY_TOKEN | {"type": "float"},
                    num_bits=8,
                    type="float",
                    strategy="block",
                    block_structure=[128, 128],
                ),
                "group_1": _group("pack-quantized", ["re:.*mlp.*"], None, num_bits=4, strategy="group", group_size=128),
            },
            "format": "mixed-precision",
            "ignore": ["lm_head"],
        },
        {_ATTENTION: "F8_E4M3 in blocks of 128x128", _MLP: "U4 in groups of 128", "lm_head": None},
    ),
    "llm-compressor, W4A8": (
        _AROUND
        | {
            "config_groups": {
                "group_0": _group("int-quantized", ["Linear"], _BY_TOKEN, num_bits=4, strategy="channel")
            },
            "format": "int-quantized",
            "ignore": ["lm_head"],
        },
        {_ATTENTION: "I8 per output", _MLP: "I8 per output"},
    ),
    "llm-compressor, keys and values alone": (
        _AROUND
        | {
            "config_groups": {},
            "format": "dense",
            "ignore": [],
            "kv_cache_scheme": _NEWER | {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True},
        },
        {_ATTENTION: None, _MLP: None, "lm_head": None},
    ),
    "Qwen/Qwen3-30B-A3B-FP8": (
        _FP8_BLOCKS | {"modules_to_not_convert": ["lm_head", "model.layers.3.input_layernorm", _ROUTER]},
        {_ATTENTION: "F8_E4M3 in blocks of 128x128", _EXPERT: "F8_E4M3 in blocks of 128x128", _ROUTER: None},
    ),
    "deepseek-ai/DeepSeek-V3.1": (
        _FP8_BLOCKS | {"scale_fmt": "ue8m0"},
        {_SHARED: "F8_E4M3 in blocks of 128x128", _ROUTER: None, "lm_head": None},
    ),
    "neuralmagic, AutoFP8": (
        {
            "activation_scheme": "static",
            "ignored_layers": ["lm_head"],
            "kv_cache_scheme": "static",
            "quant_method": "fp8",
        },
        {_MLP: "F8_E4M3 per tensor", "lm_head": None},
    ),
    "GPTQModel": (
        {
            "bits": 4,
            "checkpoint_format": "gptq",
            "desc_act": True,
            "dynamic": {"-:.*shared_experts.*": {}, "lm_head": {"bits": 8, "group_size": 64}},
            "format": "gptq",
            "group_size": 128,
            "lm_head": True,
            "meta": {"act_group_aware": True, "quantizer": ["gptqmodel:5.0.0"], "static_groups": False},
            "method": "gptq",
            "pack_dtype": "int32",
            "quant_method": "gptq",
            "sym": True,
        },
        {
            _MLP: "U4 in groups of 128, sorted",
            _SHARED: None,
            _ROUTER: None,
            "lm_head": "I8 in groups of 64, sorted",
        },
    ),
    "unsloth, bnb-4bit": (
        {
            "_load_in_4bit": True,
            "_load_in_8bit": False,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": ["lm_head", "multi_modal_projector", "merger", "model.layers.3.mlp"],
            "llm_int8_threshold": 6.0,
            "load_in_4bit": True,
            "load_in_8bit": False,
            "quant_method": "bitsandbytes",
        },
        {_ATTENTION: "NF4 in groups of 64", _MLP: None, "lm_head": None},
    ),
    "AutoAWQ": (
        {
            "backend": "autoawq",
            "bits": 4,
            "do_fuse": False,
            "exllama_config": None,
            "fuse_max_seq_len": None,
            "group_size": 128,
            "modules_to_fuse": None,
            "modules_to_not_convert": ["gate"],
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
        },
        {_EXPERT: "U4 in groups of 128 with zeros", _ROUTER: None},
    ),
}


def read(config: dict[str, Any]) -> Quantization:
    return SCHEMES[config["quant_method"]](config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_modules_have_the_formats_that_the_publisher_meant(name: str) -> None:
    config, expected = PUBLISHED[name]
    schemes = {module: read(config).scheme_of(f"{module}.weight", (256, 256)) for module in expected}
    found = {module: scheme and scheme.format and scheme.format.label for module, scheme in schemes.items()}
    assert found == expected


def _with(kind: str, **changes: Any) -> dict[str, Any]:
    """changes: in the weights of a compressed-tensors group where it has them, else in the configuration."""
    config = dict(WRITTEN[kind].config)
    groups = config.get("config_groups")
    if groups is None:
        return {key: value for key, value in (config | changes).items() if value is not None}
    group = groups["group_0"]
    return config | {"config_groups": {"group_0": group | {"format": None, "weights": group["weights"] | changes}}}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ct-w8a16", {}),
        ("ct-w4a16-actorder", {"actorder": True}),
        ("ct-w4a16-actorder", {"actorder": "dynamic"}),
        ("ct-w4a16", {"actorder": "weight"}),
        ("ct-w4a16", {"actorder": False}),
        ("ct-fp8-block", {"block_structure": "32x32"}),
        ("gptq-v2", {"checkpoint_format": None, "format": "gptq_v2"}),
        ("gptq", {"pack_dtype": "int32", "static_groups": True, "true_sequential": True, "damp_percent": 0.01}),
        ("fp8-blocks", {"modules_to_not_convert": [], "ignored_layers": ["lm_head"]}),
    ],
)
def test_other_words_mean_the_same(kind: str, changes: dict[str, Any]) -> None:
    assert read(_with(kind, **changes)) == read(WRITTEN[kind].config)


def test_keys_and_values_alone_may_be_quantised() -> None:
    config, _ = PUBLISHED["llm-compressor, keys and values alone"]
    assert read(config).kv_cache == "fp8"
    assert read({key: each for key, each in config.items() if key != "config_groups"}).kv_cache == "fp8"
