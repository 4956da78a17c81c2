"""Which families are read in which methods of storing weights, and which backends run them.

A missing pair is refused here, by name. `octavo doctor` and docs/models.md show the table of all pairs, and
`tests/models/test_supported.py` runs every pair that the table has.
"""

from __future__ import annotations

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.kernels.registry import BACKENDS
from octavo.models.gguf_config import FAMILIES_READ
from octavo.models.registry import FAMILIES
from octavo.quantization.registry import SCHEMES

#: how a checkpoint may store its matrices: a config.json's quant_method, or the others
METHODS = ("dense", *SCHEMES, "gguf")
#: methods that not every family has -> those that have it, and what the method is for
_ONLY = {
    "mxfp4": (frozenset({"gpt_oss"}), "mxfp4 names its tensors as gpt-oss does; others have compressed-tensors' MXFP4"),
    "gguf": (FAMILIES_READ, "Octavo does not know its names in GGUF files"),
}
_TURNED = "its matrices are [inputs, outputs], no Linear modules, which this method is for"
_NOT_AS = {("gpt2", method): _TURNED for method in ("bitsandbytes", "compressed-tensors", "fp8")}
_NOT_ON = {("mpnet", "triton"): "no GPU kernel adds its biases of scores yet"}


def why_not_as(family: str, method: str) -> str | None:
    """Why the family's checkpoints are not read in this method, or None."""
    families, why = _ONLY.get(method, (FAMILIES, ""))
    return _NOT_AS.get((family, method)) if family in families else why


def why_not_on(family: str, backend: str) -> str | None:
    """Why the backend does not run the family, or None. What runs at all runs in every method, if need be made
    dense while loading."""
    return _NOT_ON.get((family, backend))


def families_as(method: str, backend: str) -> list[str]:
    return [each for each in sorted(FAMILIES) if not (why_not_as(each, method) or why_not_on(each, backend))]


def check_as(family: str, method: str, where: str) -> None:
    if (why := why_not_as(family, method)) is not None:
        allowed = ", ".join(each for each in METHODS if why_not_as(family, each) is None)
        raise UnsupportedModelError(f"{where}: {family} in {method}: {why}; Octavo reads {family} as {allowed}")


def check_on(family: str, backend: str, where: str) -> None:
    if (why := why_not_on(family, backend)) is not None:
        allowed = " or ".join(f"{each!r}" for each in BACKENDS if why_not_on(family, each) is None)
        raise ConfigError(f"{where} is of the family {family}, and backend is {backend!r}: {why}; set it to {allowed}")
