"""Tiny models as quantisers publish them: their quantization_config, and the writer of their matrices."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.quantization.written import (
    Tensors,
    Writer,
    awq,
    bnb_int8,
    changed,
    fp8,
    gptq,
    int8,
    mxfp4,
    nf4,
    packed,
)


@dataclass(frozen=True)
class Written:
    config: dict[str, Any]
    write: Writer


def ct(form: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": more.pop("activations", None)}
    groups = {"config_groups": {"group_0": group}}
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"], **groups, **more}


def _ints(bits: int, group: int, **more: Any) -> dict[str, Any]:
    strategy = "channel" if group < 0 else "group"
    return {"num_bits": bits, "type": "int", "strategy": strategy, "group_size": group, **more}


FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
STATIC = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
DYNAMIC = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
_BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
WRITTEN: dict[str, Written] = {
    "fp8": Written({"quant_method": "fp8", "activation_scheme": "static"}, fp8("tensor", static=True)),
    "fp8-blocks": Written(
        {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head"]},
        fp8("block", name="weight_scale_inv"),
    ),
    "fp8-blocks-128": Written(
        {"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8("block", block=128, name="weight_scale_inv")
    ),
    "ct-fp8-tensor": Written(
        ct("float-quantized", FP8 | {"strategy": "tensor"}, activations=STATIC), fp8("tensor", static=True)
    ),
    "ct-fp8-channel": Written(
        ct("float-quantized", FP8 | {"strategy": "channel"}, activations=DYNAMIC), fp8("channel")
    ),
    "ct-fp8-block": Written(
        ct("float-quantized", FP8 | {"strategy": "block", "block_structure": [32, 32]}), fp8("block")
    ),
    "ct-w8a8": Written(ct("int-quantized", _ints(8, -1), activations=DYNAMIC | {"type": "int"}), int8()),
    "ct-w8a8-zeros": Written(ct("int-quantized", _ints(8, -1, symmetric=False)), int8(asymmetric=True)),
    "ct-w4a16": Written(ct("pack-quantized", _ints(4, 32)), packed(4, 32)),
    "ct-w4a16-channel": Written(ct("pack-quantized", _ints(4, -1)), packed(4, -1)),
    "ct-w4a16-zeros": Written(ct("pack-quantized", _ints(4, 32, symmetric=False)), packed(4, 32, asymmetric=True)),
    "ct-w4a16-actorder": Written(ct("pack-quantized", _ints(4, 32, actorder="group")), packed(4, 32, sort=True)),
    "ct-w8a16": Written(ct("pack-quantized", _ints(8, 64)), packed(8, 64)),
    "ct-w8a16-zeros": Written(ct("pack-quantized", _ints(8, 64, symmetric=False)), packed(8, 64, asymmetric=True)),
    "ct-w4a8": Written(ct("int-quantized", _ints(4, -1), activations=DYNAMIC | {"type": "int"}), int8(bits=4)),
    "ct-w4a8-groups": Written(ct("int-quantized", _ints(4, 32)), int8(bits=4, group=32)),
    "ct-mxfp4": Written(ct("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "group_size": 32}), mxfp4),
    "awq": Written({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}, awq),
    "gptq": Written(_GPTQ, gptq(4, 32)),
    "gptq-zeros": Written(_GPTQ | {"sym": False}, gptq(4, 32, asymmetric=True)),
    "gptq-v2": Written(
        _GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"}, gptq(4, 32, asymmetric=True, adds_one=False)
    ),
    "gptq-sorted": Written(_GPTQ | {"desc_act": True, "sym": False}, gptq(4, 32, asymmetric=True, sort=True)),
    "gptq-8": Written(_GPTQ | {"bits": 8, "group_size": 64}, gptq(8, 64)),
    "gptq-8-zeros": Written(_GPTQ | {"bits": 8, "sym": False}, gptq(8, 32, asymmetric=True)),
    "gptq-channel": Written(_GPTQ | {"group_size": -1, "desc_act": True}, gptq(4, -1)),
    "bnb-nf4": Written(_BNB4, nf4(nested=False)),
    "bnb-nf4-nested": Written(_BNB4 | {"bnb_4bit_use_double_quant": True}, nf4(nested=True)),
    "bnb-int8": Written({"quant_method": "bitsandbytes", "load_in_8bit": True}, bnb_int8),
}
#: what the configuration does not say, or says wrongly, and the tensors tell
WRITTEN |= {
    "fp8-outputs": Written({"quant_method": "fp8", "activation_scheme": "dynamic"}, fp8("channel")),
    "fp8-other-names": Written(
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None, "dequantize": False},
        changed(fp8("tensor", static=True), {"weight_scale": "weight_scale_inv", "input_scale": "activation_scale"}),
    ),
    "awq-unsaid-zeros": Written({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": False}, awq),
    "gptq-no-index": Written(_GPTQ, changed(gptq(4, 32), {"g_idx": None})),
    "bnb-nf4-unsaid-nested": Written(_BNB4, nf4(nested=True)),
    "bnb-int8-layout": Written(
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        changed(bnb_int8, {}, weight_format=torch.tensor(0, dtype=torch.uint8)),
    ),
}


def is_projection(name: str) -> bool:
    return name.endswith(("_proj.weight", "_proj_with_mqa.weight"))


def write_model(
    kind: str, source: Path, quantised: Path, dense: Path, chosen: Callable[[str], bool] = is_projection, **more: Any
) -> None:
    """A dense model's folder as two: quantised, and dense with the numbers that the quantised one stands for. chosen:
    the matrices that get codes. more: keys of the quantization_config that differ; None leaves one out."""
    written, rng = WRITTEN[kind], np.random.default_rng(zlib.crc32(kind.encode()))
    described = {key: value for key, value in (written.config | more).items() if value is not None}
    tensors = load_file(source / "model.safetensors")
    codes: Tensors = {}
    for name, tensor in list(tensors.items()):
        if not chosen(name):
            codes[name] = tensor
            continue
        made, tensors[name] = written.write(tensor, rng)
        codes |= {name.removesuffix("weight") + suffix: each for suffix, each in made.items()}
    config = json.loads((source / "config.json").read_text())
    for folder, changes, stored in (
        (quantised, {"quantization_config": described}, codes),
        (dense, {}, tensors),
    ):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config | changes))
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
