"""The reference backend: every op in plain torch, run as soon as it is called.

It is the executable specification: written to be read and believed, not to be fast. Other backends are
tested against it. torch is imported when a model is compiled, not when this package is.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.ops import CompiledModel, KVLayout, Model, StepLimits


class ReferenceBackend:
    """Implements `octavo.kernels.ops.Backend`."""

    name = "reference"

    def why_not(self) -> str | None:
        if find_spec("torch") is None:
            return "the reference backend computes with torch, which is not installed: pip install 'octavo[reference]'"
        return None

    def compile(self, model: Model, kv: KVLayout, pool: NDArray[np.uint8], limits: StepLimits) -> CompiledModel:
        from octavo.kernels.reference.compiled import ReferenceModel

        return ReferenceModel(model, kv, pool, limits)
