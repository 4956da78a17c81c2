"""What a file's tensors say of how its matrices are stored, where that differs from its quantization_config.

A configuration names the modules that stay dense in a list, which programs match in ways of their own, and leaves out
what its writer has no module for: Kimi K2's routers, Granite's stacks of experts. The tensors leave no doubt:

    a matrix that is there in a dense type, without codes or scales beside it, is dense
    a method with variants (zeros or none, a sorting or none) has the one whose tensors are there

Nothing is read here: types, names and shapes decide.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from octavo.errors import ModelLoadError
from octavo.kernels.parameters import Scheme, Shape
from octavo.kernels.tensor import DENSE_DTYPES, StoredTensor
from octavo.observe.logging import LOGGER
from octavo.quantization.described import KVCodes, Quantization, is_router
from octavo.quantization.scaled import ScaledScheme
from octavo.shown import shown_names


@dataclass(frozen=True, slots=True)
class AsStored:
    """own: parameters that the file stores in another way than the configuration says."""

    stated: Quantization
    own: Mapping[str, Scheme | None]

    @property
    def method(self) -> str:
        return self.stated.method

    @property
    def kv_cache(self) -> KVCodes | None:
        return self.stated.kv_cache

    def scheme_of(self, name: str, shape: Shape) -> Scheme | None:
        return self.own[name] if name in self.own else self.stated.scheme_of(name, shape)


def as_stored(
    stated: Quantization,
    parameters: Mapping[str, Shape],
    stored: Mapping[str, StoredTensor],
    dense: Collection[str],
    label: str,
) -> Quantization:
    """The same method, but for parameters that the file has in another way. dense: those that are parts of dense
    tensors under other names. label: names the file in a warning."""
    own: dict[str, Scheme | None] = {}
    for name, shape in parameters.items():
        scheme = stated.scheme_of(name, shape)
        if scheme is None:
            continue
        if name in dense or _is_dense(name, shape, scheme, stored):
            own[name] = None
        elif isinstance(scheme, ScaledScheme):
            found = scheme.as_found(name.removesuffix("weight"), stored)
            own |= {name: found} if found != scheme else {}
    unnamed = [name for name, scheme in own.items() if scheme is None and not is_router(name) and name not in dense]
    if unnamed:
        LOGGER.warning(
            "%s: %d matrices that quantization_config counts as %s are dense in the file, and read so: %s",
            *(label, len(unnamed), stated.method, shown_names(unnamed)),
        )
    return AsStored(stated, own) if own else stated


def _is_dense(name: str, shape: Shape, scheme: Scheme, stored: Mapping[str, StoredTensor]) -> bool:
    found = stored.get(name)
    if found is None or found.dtype not in DENSE_DTYPES or found.shape != shape:
        return False
    try:
        others = scheme.tensors(name, shape).keys() - {name}
    except ModelLoadError:  # a size that the scheme's groups do not divide
        return True
    return bool(others) and not any(other in stored for other in others)
