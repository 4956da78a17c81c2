"""fp8: floats of 8 bits with a scale per tensor, or per block of 128 x 128 as DeepSeek and Qwen publish them.

    {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
     "modules_to_not_convert": ["lm_head"]}

The scale of a block is `weight_scale_inv`, which in spite of its name multiplies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from octavo.kernels.scaled import ScaledFormat
from octavo.quantization.described import Described, Everywhere, kv_codes
from octavo.quantization.whole_bytes import WholeBytes

_LARGEST_BLOCK = 1 << 12
_KV = "kv_cache_scheme"  # AutoFP8 has a text here, which says how scales were found


def fp8(config: Mapping[str, Any]) -> Everywhere:
    described = Described(config)
    described.refuse("fmt", "e4m3", "float8_e4m3fn")
    described.refuse("scale_fmt", "ue8m0", "float")  # how scales were rounded; they are stored as floats
    is_static = described.choice("activation_scheme", ("dynamic", "static"), "dynamic") == "static"
    block = block_size(described, "weight_block_size")
    scheme = WholeBytes(
        ScaledFormat("F8_E4M3", block or (0, 0)),
        "fp8",
        "weight_scale" if block is None else "weight_scale_inv",
        is_static and block is None,
    )
    skipped = (*described.names("modules_to_not_convert"), *described.names("ignored_layers"))
    return Everywhere(scheme, skipped, kv_codes(described) if isinstance(config.get(_KV), Mapping) else None)


def block_size(described: Described, key: str) -> tuple[int, int] | None:
    """[rows, columns]."""
    value = described.get(key)
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", value):  # as older programs write it
        value = [int(each) for each in value.split("x")]
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(type(one) is int for one in value)
    if not is_pair or not all(1 <= one <= _LARGEST_BLOCK for one in value):
        raise described.wrong(key, f"two whole numbers from 1 to {_LARGEST_BLOCK}")
    return value[0], value[1]
