"""Which kernels attend in a layer of a model on a GPU: the protocol, and one table of those there are, best first.

    table, best first        flash_attn_4 (if asked for) | hopper | triton
    a layer of the model     those that take it, in this order: a chain
    a phase of a step        the first of the chain computes it, or leaves it to the next

What is chosen is chosen once, when the model is loaded. A step then calls closures that know all but the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from octavo.config import AttentionBackendOption
from octavo.errors import ConfigError
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.ops import AttentionLayer, Tensor

if TYPE_CHECKING:
    from octavo.kernels.cuda.step import AttentionLaunch, DeviceStep
    from octavo.kernels.triton.attention.memory import AttentionMemory
    from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform


class AttentionBackend(Protocol):
    """Kernels that attend in some of a model's layers; made once a model."""

    longest_captured: ClassVar[int | None]
    """Steps with longer chunks are launched anew each time, since their lengths must be known on the host; None: all
    may be captured in a graph."""

    @staticmethod
    def why_not(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU) -> list[str]:
        """Each reason why a layer of a model that computes in `dtype` is not for it, neither phase; none: it is."""

    def __init__(self, memory: AttentionMemory) -> None: ...

    def plan(self, step: DeviceStep) -> None:
        """What all layers need to know of a step, once before them."""

    def decode(
        self, layer: AttentionLayer, transform: HeadTransform | None, otherwise: AttentionLaunch
    ) -> AttentionLaunch:
        """What computes the sequences that decode. Without `transform`, q is [T, Q * D] and the cache is up to date.
        With it, q is [T, (Q + 2K) * D] straight from the projection, and the cache receives the new keys and values.
        `otherwise`: computes what this leaves alone."""

    def prefill(self, layer: AttentionLayer, otherwise: AttentionLaunch) -> AttentionLaunch:
        """What computes the other sequences, with chunks of new tokens. q is [T, Q * D], the cache up to date."""


def _flash_attn_4() -> type[AttentionBackend]:
    from octavo.kernels.external.flash_attention import FlashAttention

    return FlashAttention


def _hopper() -> type[AttentionBackend]:
    from octavo.kernels.triton.attention.hopper_attention import HopperAttention

    return HopperAttention


def _triton() -> type[AttentionBackend]:
    from octavo.kernels.triton.attention.triton_attention import TritonAttention

    return TritonAttention


#: Best first. The option `attention_backend` names one that must take every layer; "triton" stands for all of Octavo's
#: own, which it does not have to name.
BACKENDS: dict[str, Callable[[], type[AttentionBackend]]] = {
    "flash_attn_4": _flash_attn_4,
    "hopper": _hopper,
    "triton": _triton,
}
_ONLY_IF_ASKED = {"flash_attn_4"}


def choose(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU, asked: AttentionBackendOption) -> list[str]:
    """The backends that a layer gets, by name and best first; the last takes whatever there is. Raises ConfigError
    where the one asked for does not take it."""
    chain = []
    for name, load in BACKENDS.items():
        if name in _ONLY_IF_ASKED and name != asked:
            continue
        reasons = load().why_not(layer, dtype, kv, gpu)
        if not reasons:
            chain.append(name)
        elif name == asked:
            raise ConfigError(
                f"attention_backend is {asked!r}, which cannot serve this model here: {'; '.join(reasons)}. Set "
                "attention_backend='triton'"
            )
    return chain


class ModelAttention:
    """The backends of one model's layers, at work."""

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        dtype: KVDType,
        kv: KVLayout,
        asked: AttentionBackendOption,
        memory: AttentionMemory,
    ) -> None:
        chains = {layer: choose(layer, dtype, kv, memory.gpu, asked) for layer in layers}
        used = [name for name in BACKENDS if any(name in chain for chain in chains.values())]
        self._backends = {name: BACKENDS[name]()(memory) for name in used}
        self._chains = {layer: [self._backends[name] for name in chain] for layer, chain in chains.items()}
        limits = [backend.longest_captured for backend in self._backends.values()]
        #: see `AttentionBackend`
        self.longest_captured = min((limit for limit in limits if limit is not None), default=None)

    def plan(self, step: DeviceStep) -> None:
        for backend in self._backends.values():
            backend.plan(step)

    def decode(self, layer: AttentionLayer, transform: HeadTransform | None = None) -> AttentionLaunch:
        launch: AttentionLaunch = _nobody
        for backend in reversed(self._chains[layer]):
            launch = backend.decode(layer, transform, launch)
        return launch

    def prefill(self, layer: AttentionLayer) -> AttentionLaunch:
        launch: AttentionLaunch = _nobody
        for backend in reversed(self._chains[layer]):
            launch = backend.prefill(layer, launch)
        return launch


def _nobody(step: DeviceStep, q: Tensor, out: Tensor) -> None:
    raise AssertionError("the last backend of a chain leaves nothing to others")
