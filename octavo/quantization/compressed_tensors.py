"""compressed-tensors: groups of modules, each with a format of its own, as LLM Compressor writes them.

    {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
     "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", ...}}}}

    float-quantized, int-quantized, naive-quantized    a byte a number, also of 4 bits: `whole_bytes.py`
    pack-quantized                                     4 or 8 bits in words of 32: `Packed`
    mxfp4-pack-quantized                               nibbles of E2M1: `mxfp4.py`

A target or an ignored name is a module's name, its class ("Linear") or `re:` and a pattern. What a file says of
activations is how a kernel may round them; the weights' numbers do not depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.parameters import Scheme, Shape
from octavo.kernels.scaled import ScaledFormat, ScaledTensor
from octavo.kernels.tensor import StoredTensor
from octavo.quantization.described import Described, KVCodes, is_in_layer, kv_codes, pattern, spellings_of
from octavo.quantization.fp8 import block_size
from octavo.quantization.mxfp4 import MXFP4Rows
from octavo.quantization.packed_words import PackedScheme, as_codes, as_zeros, checked_groups, code_of, unpacked
from octavo.quantization.scaled import FLOATS, Held, floats, integers
from octavo.quantization.whole_bytes import WholeBytes

_METHOD = "compressed-tensors"
_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "mxfp4-pack-quantized")
_MOST_GROUPS = 1000


@dataclass(frozen=True, slots=True)
class Packed(PackedScheme):
    """weight_packed I32 [out, in * bits / 32], weight_scale [out, groups], weight_shape I64 [2]; weight_zero_point I32
    [out * bits / 32, groups], weight_g_idx I32 [in]."""

    method: str = _METHOD

    def held(self, shape: Shape) -> dict[str, Held]:
        (rows, cols), group, per = shape, self.format.block_of(shape)[1], 32 // self.bits
        groups = -(-cols // group)
        follows = (1, group) if self.format.block[1] and not self.format.is_sorted else None
        tensors = {
            "weight_packed": Held((rows, cols // per), ("I32",), (0, 1), (1, per)),
            "weight_scale": Held((rows, groups), FLOATS, (0, 1), follows),
            "weight_shape": Held((2,), ("I64", "I32")),
        }
        if self.format.has_zeros:
            tensors["weight_zero_point"] = Held((-(-rows // per), groups), ("I32",), (0, per), follows)
        if self.format.is_sorted:
            tensors["weight_g_idx"] = Held((cols,), ("I32",), None, (0, 1))
        return tensors

    def read(self, sources: Mapping[str, StoredTensor]) -> ScaledTensor:
        codes = unpacked(integers(sources["weight_packed"]), self.bits, 1)
        stated = integers(sources["weight_shape"]).tolist()
        if stated[0] < codes.shape[0] or stated[1] < codes.shape[1]:  # a rank has less than stated
            raise ModelLoadError(
                f"{sources['weight_shape'].label} is {stated}, but the codes beside it have shape {list(codes.shape)}; "
                "download the model again"
            )
        scales, zeros = floats(sources["weight_scale"]), None
        if self.format.has_zeros:
            stored = unpacked(integers(sources["weight_zero_point"]), self.bits, 0)[: len(codes)]
            zeros = as_zeros(stored, self.bits)
            if zeros is None:
                zeros = np.full(scales.shape, 8 if self.bits == 4 else 0, np.int16)
        groups = None
        if self.format.is_sorted:
            index = sources["weight_g_idx"]
            groups = checked_groups(index, integers(index), scales.shape[1])
        given = (self.format, codes.shape, as_codes(codes, self.bits), scales, sources["weight_scale"].dtype)
        return ScaledTensor(*given, zeros, groups)


@dataclass(frozen=True, slots=True)
class Names:
    """Modules by name or pattern, and whether all linear layers are among them."""

    names: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    has_linear: bool

    @classmethod
    def of(cls, described: Described, key: str) -> Names:
        given = described.names(key)
        texts = [text.removeprefix("re:") for text in given if text.startswith("re:")]
        patterns = tuple(pattern(described, text) for text in texts)
        return cls(frozenset(given), patterns, "Linear" in given)

    def has(self, name: str) -> bool:
        return any(
            spelling in self.names or any(each.match(spelling) for each in self.patterns)
            for spelling in spellings_of(name)
        )


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """groups: the first that names a module decides, then the first for all linear layers."""

    groups: tuple[tuple[Names, Scheme | None], ...]
    ignored: Names
    kv_cache: KVCodes | None = None
    method: str = _METHOD

    def scheme_of(self, name: str, shape: Shape) -> Scheme | None:
        if not (is_in_layer(name, shape) or name == "lm_head.weight") or self.ignored.has(name):
            return None
        for targets, scheme in self.groups:
            if targets.has(name):
                return scheme
        return next((scheme for targets, scheme in self.groups if targets.has_linear), None)


def compressed_tensors(config: Mapping[str, Any]) -> CompressedTensors:
    described = Described(config)
    if described.get("sparsity_config") is not None:
        described.inside("sparsity_config").refuse("format", "dense")
    if described.get("transform_config") is not None and described.inside("transform_config").get("config_groups"):
        raise described.wrong("transform_config", "none", UnsupportedModelError)
    kv_cache = kv_codes(described)
    if kv_cache is not None and not described.get("config_groups"):  # keys and values alone
        return CompressedTensors((), Names.of(described, "ignore"), kv_cache)
    groups = described.inside("config_groups")
    if not 0 < len(groups.values) <= _MOST_GROUPS:
        raise described.wrong("config_groups", f"1 to {_MOST_GROUPS} groups")
    found, stated = [], {"format": described.get("format")}
    for key in groups.values:
        group = groups.inside(key)
        targets = Names.of(group, "targets")
        known = group if group.get("format") is not None else Described({**group.values, **stated}, group.within)
        found.append((targets, _scheme(known) if group.get("weights") is not None else None))
    return CompressedTensors(tuple(found), Names.of(described, "ignore"), kv_cache)


def _scheme(group: Described) -> Scheme:
    weights, stored = group.inside("weights"), group.choice("format", (*_FORMATS, "mixed-precision"), "mixed-precision")
    bits, kind = weights.choice("num_bits", (4, 8), 8), weights.choice("type", ("int", "float"), "int")
    if (stored, bits, kind) == ("mxfp4-pack-quantized", 4, "float"):
        return MXFP4Rows(ScaledFormat("E2M1", (1, 32)))
    if (bits == 4 and kind == "float") or stored == "mxfp4-pack-quantized":
        raise weights.wrong("type", "int of 4 and 8 bits, float of 8, and float of 4 as mxfp4", UnsupportedModelError)
    block, has_zeros = _block(weights), not weights.flag("symmetric", True)
    if stored == "pack-quantized" or (bits == 4 and stored == "mixed-precision"):
        if block[0] != 1:
            raise weights.wrong("strategy", "channel and group for packed weights", UnsupportedModelError)
        order = weights.choice("actorder", ("group", "dynamic", "weight", "static", True, False), False)
        is_sorted = order in ("group", "dynamic", True) and block[1] > 0
        return Packed(ScaledFormat(code_of(bits), block, has_zeros, is_sorted), bits)
    form = ScaledFormat("F8_E4M3" if kind == "float" else "I8", block, has_zeros and kind == "int")
    return WholeBytes(form, _METHOD, has_input_scale=_is_static(group))


def _block(weights: Described) -> tuple[int, int]:
    """The rows and columns that share a scale."""
    group = weights.get("group_size")
    strategy = weights.choice(
        "strategy", ("tensor", "channel", "group", "block"), "tensor" if group is None else "group"
    )
    if strategy == "group":
        return 1, weights.group_size("group_size")
    if strategy == "block":
        block = block_size(weights, "block_structure")
        if block is None:
            raise weights.wrong("block_structure", "two whole numbers")
        return block
    return (1, 0) if strategy == "channel" else (0, 0)


def _is_static(group: Described) -> bool:
    """Whether the scale of activations is in the file."""
    if group.get("input_activations") is None:
        return False
    inputs = group.inside("input_activations")
    inputs.choice("num_bits", (8,), 8)
    if inputs.flag("dynamic", False):
        return False
    inputs.choice("strategy", ("tensor",), "tensor")
    return True
