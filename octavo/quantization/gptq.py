"""GPTQ: codes of 4 or 8 bits in groups of inputs, packed along the inputs.

    qweight   I32 [in * bits / 32, out]
    qzeros    I32 [in / group, out * bits / 32]       each one less than the zero, but for checkpoint_format gptq_v2
    scales    [in / group, out]
    g_idx     I32 [in], the group of each input       out of order with desc_act: sorted by importance

A symmetric checkpoint has zeros too, all in the middle. Some writers, such as AutoRound, leave out a g_idx in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError
from octavo.kernels.parameters import Scheme, Shape
from octavo.kernels.scaled import ScaledFormat, ScaledTensor
from octavo.kernels.tensor import StoredTensor
from octavo.quantization.described import Described, KVCodes, is_in_layer, is_named, is_router, pattern, spellings_of
from octavo.quantization.packed_words import PackedScheme, as_codes, as_zeros, checked_groups, code_of, unpacked
from octavo.quantization.scaled import FLOATS, Held, floats, integers


@dataclass(frozen=True, slots=True)
class GPTQ(PackedScheme):
    """adds_one: to the stored zeros. has_index: whether there is a g_idx."""

    adds_one: bool = True
    has_index: bool = True
    method: str = "gptq"

    def held(self, shape: Shape) -> dict[str, Held]:
        (rows, cols), group, per = shape, self.format.block_of(shape)[1], 32 // self.bits
        groups = -(-cols // group)
        follows = (0, group) if self.format.block[1] and not self.format.is_sorted else None
        tensors = {
            "qweight": Held((cols // per, rows), ("I32",), (1, 1), (0, per)),
            "scales": Held((groups, rows), FLOATS, (1, 1), follows),
            "qzeros": Held((groups, -(-rows // per)), ("I32",), (1, per), follows),
        }
        return tensors | ({"g_idx": Held((cols,), ("I32",), None, (0, 1))} if self.has_index else {})

    def as_found(self, stem: str, stored: Mapping[str, StoredTensor]) -> GPTQ:
        return self if self.format.is_sorted else replace(self, has_index=f"{stem}g_idx" in stored)

    def read(self, sources: Mapping[str, StoredTensor]) -> ScaledTensor:
        codes = unpacked(integers(sources["qweight"]), self.bits, 0).T
        scales = np.ascontiguousarray(floats(sources["scales"]).T)
        stored = np.ascontiguousarray(unpacked(integers(sources["qzeros"]), self.bits, 1).T)
        zeros = as_zeros(stored.astype(np.int16) + np.int16(self.adds_one), self.bits)
        if zeros is not None and not self.format.has_zeros:
            raise ModelLoadError(
                f"{sources['qzeros'].label} has zeros out of the middle, but quantization_config.sym is true: set it "
                "to false"
            )
        if zeros is None and self.format.has_zeros:
            zeros = np.full(scales.shape, 8 if self.bits == 4 else 0, np.int16)
        given = (self.format, codes.shape, as_codes(codes, self.bits), scales, sources["scales"].dtype, zeros)
        index = sources.get("g_idx")
        return ScaledTensor(*given, None if index is None else self._groups(index, scales.shape[1]))

    def _groups(self, source: StoredTensor, num_groups: int) -> NDArray[np.int32] | None:
        groups = integers(source)
        if self.format.is_sorted:
            return checked_groups(source, groups, num_groups)
        in_order = np.arange(len(groups)) // (self.format.block[1] or len(groups))
        if not np.array_equal(groups - groups[:1], in_order):  # a rank's part begins at a later group
            raise ModelLoadError(
                f"{source.label} sorts the inputs, but quantization_config.desc_act is false: set it to true"
            )
        return None


@dataclass(frozen=True, slots=True)
class GPTQConfig:
    """modules: the only ones that are quantised, if the file lists any. overrides: (sign, pattern, scheme), the first
    that matches decides; a minus spares the module."""

    scheme: GPTQ
    modules: tuple[str, ...]
    overrides: tuple[tuple[str, re.Pattern[str], GPTQ], ...]
    has_head: bool
    method: str = "gptq"
    kv_cache: KVCodes | None = None

    def scheme_of(self, name: str, shape: Shape) -> Scheme | None:
        if name == "lm_head.weight":
            is_counted = self.has_head
        else:
            is_counted = is_in_layer(name, shape) and not is_router(name)
            is_counted = is_counted and (not self.modules or is_named(name, self.modules))
        if not is_counted:
            return None
        for sign, matching, scheme in self.overrides:
            if any(matching.match(spelling) for spelling in spellings_of(name)):
                return None if sign == "-" else scheme
        return self.scheme


def gptq(config: Mapping[str, Any]) -> GPTQConfig:
    described = Described(config)
    described.refuse("is_marlin_format", False)
    described.refuse("pack_dtype", "int32")
    version = described.choice(("checkpoint_format", "format"), ("gptq", "gptq_v2"), "gptq")
    modules = _modules(described)
    scheme = replace(_scheme(described), adds_one=version == "gptq")
    overrides = tuple(_overrides(described, scheme))
    return GPTQConfig(scheme, modules, overrides, described.flag("lm_head", False))


def _modules(described: Described) -> tuple[str, ...]:
    """Lists of names, one for each part of a layer."""
    key = "modules_in_block_to_quantize"
    blocks = described.get(key)
    if not isinstance(blocks, list):
        return described.names(key)
    flat = [one for block in blocks for one in (block if isinstance(block, list) else [block])]
    return Described({key: flat}, described.within).names(key)


def _scheme(described: Described, changes: Described | None = None) -> GPTQ:
    one = described if changes is None else Described({**described.values, **changes.values}, changes.within)
    bits = one.choice("bits", (4, 8))
    group, is_sorted = one.group_size("group_size"), one.flag("desc_act", False)
    return GPTQ(ScaledFormat(code_of(bits), (1, group), not one.flag("sym", True), is_sorted and group > 0), bits)


def _overrides(described: Described, scheme: GPTQ) -> list[tuple[str, re.Pattern[str], GPTQ]]:
    """GPTQModel's `dynamic`: {"+:pattern": {"bits": 8}, "-:pattern": {}}."""
    if described.get("dynamic") is None:
        return []
    dynamic, found = described.inside("dynamic"), []
    for key, changes in dynamic.values.items():
        sign, text = (key[0], key[2:]) if key[:2] in ("+:", "-:") else ("+", key)
        changed = Described({} if changes is None else changes, f"{dynamic.within}[{key!r}]")
        own = scheme if sign == "-" else replace(_scheme(described, changed), adds_one=scheme.adds_one)
        found.append((sign, pattern(dynamic, text), own))
    return found
