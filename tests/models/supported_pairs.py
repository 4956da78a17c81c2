"""Every pair of a family and a method of storing weights: a tiny model of it, and the logits of one step.

AWQ's codes are also GPTQ's, and those of compressed-tensors here are bitsandbytes' of 8 bits; how files of each method
store them is tested in tests/quantization.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from octavo.kernels.arrays import FloatArray
from octavo.kernels.device import Device, StepBatch, StepLimits
from octavo.kernels.kv_layout import KVGroup, KVLayout
from octavo.models.architecture import Architecture
from octavo.models.registry import FAMILIES, build_model
from octavo.models.supported import why_not_as
from octavo.quantization.at_load import as_dummy
from octavo.quantization.registry import SCHEMES
from tests.models.architectures import ARCHITECTURES, ENCODERS
from tests.models.symbolic import DrawnTensors

_INTEGERS = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
#: a method -> a quantization_config of it
CONFIGS: dict[str, dict[str, Any]] = {
    "awq": {"bits": 4, "group_size": 32},
    "bitsandbytes": {"load_in_8bit": True},
    "compressed-tensors": {"format": "int-quantized", "config_groups": {"group_0": _INTEGERS}},
    "fp8": {},
    "gptq": {"bits": 4, "group_size": 32},
    "mxfp4": {},
}
_SAME_CODES = ("bitsandbytes", "gptq")
METHODS_RUN = ("dense", *(method for method in SCHEMES if method not in _SAME_CODES), "gguf")
PAIRS = [(family, method) for family in FAMILIES for method in METHODS_RUN if why_not_as(family, method) is None]
TOKENS = np.array([3, 5, 8, 13, 21, 34], np.int32)
BLOCK_SIZE = 16


def architecture_of(family: str, method: str) -> Architecture:
    architecture = {**ARCHITECTURES, **ENCODERS}[family]
    if method not in SCHEMES:
        return architecture
    return replace(architecture, quantization=as_dummy(SCHEMES[method](CONFIGS[method])))


def logits_of(device: Device, family: str, method: str) -> FloatArray:
    """Of random weights in the method's format, for each of the tokens; an encoder's hidden states."""
    a, count = architecture_of(family, method), len(TOKENS)
    source = DrawnTensors("Q8_0" if method == "gguf" else "F32")
    group = KVGroup(a.num_layers, a.num_kv_heads, a.head_dim, a.latent is not None)
    layout = KVLayout(0, BLOCK_SIZE, (group,), "float32")
    limits = StepLimits(max_num_tokens=8, max_num_seqs=8, max_model_len=BLOCK_SIZE, vocab_size=a.vocab_size)
    model = build_model(a, source, [(0, layer) for layer in range(a.num_layers)], BLOCK_SIZE)
    compiled = device.load(model, layout, limits, "float32").bind(2)
    batch = StepBatch(
        input_ids=TOKENS,
        positions=np.arange(count, dtype=np.int32),
        query_start_loc=np.array([0, count], np.int32),
        seq_lens=np.array([count], np.int32),
        rows=np.array([0], np.int32),
        block_tables=(np.ones((8, 1), np.int32),),
        token_types=np.zeros(count, np.int32) if not a.is_causal else None,
    )
    compiled.forward(batch)
    logits = compiled.logits(np.arange(count, dtype=np.int32))
    return np.array(logits.cpu().numpy() if device.is_asynchronous else logits)
