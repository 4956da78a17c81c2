"""Random matrices of codes and scales, in every format that quantized_linear.cu takes."""

from __future__ import annotations

import numpy as np

from octavo.kernels.scaled import ScaledFormat, ScaledTensor

FORMATS = [
    *(ScaledFormat("F8_E4M3", block) for block in ((0, 0), (1, 0), (128, 128))),
    *(ScaledFormat("I8", block) for block in ((1, 0), (1, 128))),
    *(ScaledFormat("U4", (1, 64), has_zeros) for has_zeros in (False, True)),
    *(ScaledFormat("U4", (1, 512)), ScaledFormat("U4", (1, 128), has_zeros=True)),
]


def random_matrix(form: ScaledFormat, shape: tuple[int, int], seed: int = 0, size: float | None = None) -> ScaledTensor:
    """size: about the standard deviation of its numbers; None: it does not matter."""
    rng = np.random.default_rng(seed)
    stored = (shape[0], shape[1] // 2 if form.is_nibbles else shape[1])
    codes = rng.integers(0, 256, stored).astype(np.uint8)
    if form.code == "F8_E4M3":
        codes[codes & 127 == 127] = 0  # NaN
    blocks = form.blocks_of(shape)
    scales = (rng.random(blocks) + 0.5).astype(np.float32)
    if size is not None:
        spread = {"F8_E4M3": 110.0, "I8": 74.0, "U4": 4.6, "E2M1": 2.9, "NF4": 0.6, "IQ4_NL": 69.0}[form.code]
        scales *= np.float32(size / spread)
    if form.code == "E2M1":  # powers of two
        scales = np.exp2(np.round(np.log2(scales))).astype(np.float32)
    zeros = rng.integers(0, 16, blocks).astype(np.int16) if form.has_zeros else None
    groups = None
    if form.is_sorted:
        groups = rng.permutation(np.arange(shape[1]) // form.block[1]).astype(np.int32)
    return ScaledTensor(form, shape, codes, scales, zeros=zeros, groups=groups)
