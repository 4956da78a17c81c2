"""Configurations of other programs, brought into those of the methods whose tensors they write.

    modelopt        NVIDIA's ModelOpt: FP8 per tensor, or per output        fp8
    fbgemm_fp8      Meta's Llama 3.1 405B: FP8 per output                   fp8
    auto-round      Intel's AutoRound, in packing_format auto_gptq          gptq
                    in packing_format auto_awq                              awq

A folder may have its quantization_config in a file of its own, by the program that wrote it:

    quantize_config.json       AutoGPTQ, GPTQModel
    quant_config.json          AWQ
    hf_quant_config.json       ModelOpt, whose keys are under "quantization"
    quantization_config.json   AutoRound
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.errors import UnsupportedModelError
from octavo.quantization.described import Described

#: a file's name -> the method where it states none
FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
    "quantization_config.json": "auto-round",
}
_DENSE_BITS = 16


def as_known(config: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The method, and the configuration in its words; of other methods, and without one, as they are."""
    method = config.get("quant_method")
    if method is None and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        return "bitsandbytes", config  # files of 2023
    translate = _OTHERS.get(method) if isinstance(method, str) else None
    return (method, config) if translate is None else translate(Described(config))


def _modelopt(described: Described) -> tuple[str, dict[str, Any]]:
    """Its lists have patterns: "model.layers.*.mlp.gate"."""
    if described.get("quantization") is not None:
        described = described.inside("quantization")
    stated = described.get("quant_algo")
    if not isinstance(stated, str) or stated.upper() not in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        raise described.wrong("quant_algo", "FP8, FP8_PER_CHANNEL_PER_TOKEN", UnsupportedModelError)
    scheme = described.values.get("kv_cache_scheme")
    keys = described.get("kv_cache_quant_algo") or ("FP8" if isinstance(scheme, Mapping) else None)
    if keys is not None and keys != "FP8":
        raise described.wrong("kv_cache_quant_algo", "FP8", UnsupportedModelError)
    return "fp8", {
        "activation_scheme": "static" if stated.upper() == "FP8" else "dynamic",
        "modules_to_not_convert": [*described.names("exclude_modules"), *described.names("ignore")],
        "kv_cache_scheme": None if keys is None else {"num_bits": 8, "type": "float"},
    }


def _fbgemm(described: Described) -> tuple[str, dict[str, Any]]:
    return "fp8", {"activation_scheme": "dynamic", "modules_to_not_convert": described.names("modules_to_not_convert")}


def _auto_round(described: Described) -> tuple[str, dict[str, Any]]:
    described.refuse("data_type", "int")
    default = "auto_round:auto_gptq"
    allowed = ("auto_gptq", "auto_round:auto_gptq", "auto_awq", "auto_round:auto_awq")
    packing, own = described.choice("packing_format", allowed, default), _own_bits(described)
    shared = {key: described.get(key) for key in ("bits", "group_size")}
    if packing.endswith("auto_awq"):
        if not all(map(_is_dense, own.values())):
            raise described.wrong("extra_config", f"modules with bits of {_DENSE_BITS}", UnsupportedModelError)
        return "awq", {**shared, "zero_point": not described.flag("sym", True), "modules_to_not_convert": list(own)}
    dynamic = {f"{'-' if _is_dense(changes) else '+'}:(?:{name})$": changes for name, changes in own.items()}
    return "gptq", {**shared, "sym": described.flag("sym", True), "dynamic": dynamic, "lm_head": _has_head(described)}


def _own_bits(described: Described) -> dict[str, dict[str, Any]]:
    """By a module's name or pattern."""
    if described.get("extra_config") is None:
        return {}
    listed = described.inside("extra_config")
    found = {name: listed.inside(name) for name in listed.values}
    return {
        name: {key: each.get(key) for key in ("bits", "group_size", "sym") if each.get(key) is not None}
        for name, each in found.items()
    }


def _is_dense(changes: Mapping[str, Any]) -> bool:
    bits = changes.get("bits")
    return isinstance(bits, int) and bits >= _DENSE_BITS


def _has_head(described: Described) -> bool:
    listed = described.get("extra_config") or {}
    return "lm_head" in listed and not _is_dense(described.inside("extra_config").inside("lm_head").values)


_OTHERS: dict[str, Callable[[Described], tuple[str, dict[str, Any]]]] = {
    "modelopt": _modelopt,
    "fbgemm_fp8": _fbgemm,
    **dict.fromkeys(("auto-round", "intel/auto-round"), _auto_round),
}
#: what `as_known` knows beside the methods
OTHERS = ("modelopt", "fbgemm_fp8", "auto-round")
