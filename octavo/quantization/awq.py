"""AWQ: nibbles in groups of inputs, each group with a zero; packed along the outputs, in AWQ's own order of nibbles.

qweight   I32 [in, out / 8]
qzeros    I32 [in / group, out / 8]
scales    [in / group, out]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from octavo.kernels.parameters import Shape
from octavo.kernels.scaled import ScaledFormat, ScaledTensor
from octavo.kernels.tensor import StoredTensor
from octavo.quantization.described import Described, Everywhere
from octavo.quantization.packed_words import AWQ_ORDER, as_codes, unpacked
from octavo.quantization.scaled import FLOATS, Held, ScaledScheme, floats, integers


def awq(config: Mapping[str, Any]) -> Everywhere:
    described = Described(config)
    described.choice(("bits", "w_bit"), (4,), 4)
    described.choice("version", ("gemm", "GEMM"), "gemm")
    has_zeros = described.flag("zero_point", True)
    group = described.group_size("group_size", "q_group_size")
    scheme = AWQ(ScaledFormat("U4", (1, group), has_zeros))
    return Everywhere(scheme, described.names("modules_to_not_convert"))


@dataclass(frozen=True, slots=True)
class AWQ(ScaledScheme):
    method: str = "awq"

    def held(self, shape: Shape) -> dict[str, Held]:
        (rows, cols), group = shape, self.format.block_of(shape)[1]
        groups = -(-cols // group)
        follows = (0, group) if self.format.block[1] else None
        tensors = {
            "qweight": Held((cols, -(-rows // 8)), ("I32",), (1, 8), (0, 1)),
            "scales": Held((groups, rows), FLOATS, (1, 1), follows),
        }
        if self.format.has_zeros:
            tensors["qzeros"] = Held((groups, -(-rows // 8)), ("I32",), (1, 8), follows)
        return tensors

    def as_found(self, stem: str, stored: Mapping[str, StoredTensor]) -> AWQ:
        """Some files have zeros though zero_point is false."""
        return replace(self, format=replace(self.format, has_zeros=self.format.has_zeros or f"{stem}qzeros" in stored))

    def read(self, sources: Mapping[str, StoredTensor]) -> ScaledTensor:
        codes = unpacked(integers(sources["qweight"]), 4, 1, AWQ_ORDER).T
        zeros = None
        if self.format.has_zeros:
            zeros = np.ascontiguousarray(unpacked(integers(sources["qzeros"]), 4, 1, AWQ_ORDER).T).astype(np.int16)
        scales = np.ascontiguousarray(floats(sources["scales"]).T)
        return ScaledTensor(self.format, codes.shape, as_codes(codes, 4), scales, sources["scales"].dtype, zeros)
