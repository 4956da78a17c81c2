"""Attention backends on a GPU: their protocol, the table of all backends, and the choice for each layer of a model.

    table, best first        flash_attn_4 (only if asked for) | cuda | hopper | triton | deterministic (if asked for)
                             latent, for latents alone; deterministic takes them, too
    a layer of the model     the backends that take it, in this order: a chain
    a phase of a step        the first backend of the chain computes it, or leaves it to the next

The choice is made once, when the model is loaded. A step then calls closures that need nothing but the step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from octavo.config import AttentionBackendOption, BackendConfig
from octavo.errors import ConfigError, KernelBuildError
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.ops import Tensor

if TYPE_CHECKING:
    from octavo.kernels.cuda.step import AttentionLaunch, DeviceStep
    from octavo.kernels.triton.attention.memory import AttentionMemory
    from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform

#: what the options ask for: `attention_backend`, or the one backend of a deterministic engine
AttentionChoice = AttentionBackendOption | Literal["deterministic"]


def attention_choice(config: BackendConfig) -> AttentionChoice:
    return "deterministic" if config.deterministic else config.attention_backend


class AttentionBackend(Protocol):
    """Attention kernels for some of a model's layers; built once per model."""

    decodes_alone: bool
    """Whether fused steps of decodes with one new token each need no other backend's plan."""

    short_chunk: int
    """It decodes sequences of up to this many new tokens faster than others compute them as chunks; 1: only those of
    one token. Above 1 only if it takes all layers."""

    decodes_in_parts: ClassVar[bool]
    """Whether its decodes leave partial results in `AttentionMemory.workspace`."""

    scales_projections: ClassVar[bool]
    """Whether its fused decodes multiply a projection that lacks the scales of its rows and columns by these."""

    longest_captured: ClassVar[int | None]
    """Steps with longer chunks cannot be captured: their lengths must be known on the host. None: all steps can."""

    @staticmethod
    def why_not(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU) -> list[str]:
        """Every reason why the backend takes neither phase of this layer; empty if it takes one. dtype: the model
        computes in it."""

    def __init__(self, memory: AttentionMemory) -> None: ...

    @property
    def num_bytes(self) -> int:
        """Memory of its own."""

    def plan(self, step: DeviceStep) -> None:
        """Prepare what all layers need of a step; called once before them."""

    def decode(
        self, layer: AttentionLayer, transform: HeadTransform | None, otherwise: AttentionLaunch
    ) -> AttentionLaunch:
        """The launch for the decoding sequences. Without `transform`, q is [T, Q * D] and the cache is up to date. With
        it, q is [T, (Q + 2K) * D] straight from the projection, and the launch writes the new keys and values to the
        cache. otherwise: the launch for the steps that this backend does not take."""

    def prefill(self, layer: AttentionLayer, otherwise: AttentionLaunch) -> AttentionLaunch:
        """The launch for the other sequences, with chunks of new tokens. q is [T, Q * D], the cache up to date."""


def _flash_attn_4() -> type[AttentionBackend]:
    from octavo.kernels.external.flash_attention import FlashAttention

    return FlashAttention


def _cuda() -> type[AttentionBackend]:
    from octavo.kernels.cuda_cpp.attention import CudaAttention

    return CudaAttention


def _hopper() -> type[AttentionBackend]:
    from octavo.kernels.triton.attention.triton_attention import HopperAttention

    return HopperAttention


def _triton() -> type[AttentionBackend]:
    from octavo.kernels.triton.attention.triton_attention import TritonAttention

    return TritonAttention


def _latent() -> type[AttentionBackend]:
    from octavo.kernels.triton.attention.latent_attention import LatentAttention

    return LatentAttention


def _deterministic() -> type[AttentionBackend]:
    from octavo.kernels.triton.attention.triton_attention import FixedAttention

    return FixedAttention


#: Best first. If the option `attention_backend` names one, it must take every layer, and those before it are left out.
BACKENDS: dict[str, Callable[[], type[AttentionBackend]]] = {
    "flash_attn_4": _flash_attn_4,
    "cuda": _cuda,
    "hopper": _hopper,
    "triton": _triton,
    "latent": _latent,
    "deterministic": _deterministic,
}
#: and the option that asks for it
ONLY_IF_ASKED = {"flash_attn_4": "attention_backend='flash_attn_4'", "deterministic": "deterministic=True"}
#: those that attend to latents
TAKE_LATENTS = ("latent", "deterministic")
#: those that also compute layers whose tokens see what follows them
SEE_AHEAD = ("triton",)
_OPTIONS = {"deterministic": ("deterministic is True", "deterministic=False")}


def choose(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU, asked: AttentionChoice) -> list[str]:
    """The names of a layer's backends, best first; the last takes every step. Raises ConfigError if the requested
    backend does not take the layer."""
    chain = []
    names = list(BACKENDS)
    for name, load in BACKENDS.items():
        if (name in ONLY_IF_ASKED and name != asked) or (asked in names and names.index(name) < names.index(asked)):
            continue
        reasons = load().why_not(layer, dtype, kv, gpu)
        if layer.latent is not None and name not in TAKE_LATENTS:
            reasons = ["it attends to keys and values, and the model has latents"]
        if not layer.is_causal and name not in SEE_AHEAD:
            reasons = [*reasons, "an encoder's tokens see those after them, which its kernels do not compute"]
        if not reasons:
            chain.append(name)
        elif name == asked:
            option, unset = _OPTIONS.get(name, (f"attention_backend is {name!r}", "attention_backend='auto'"))
            raise ConfigError(f"{option}, which cannot serve this model here: {'; '.join(reasons)}. Set {unset}")
    return chain


class ModelAttention:
    """The backends of one model's layers."""

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        dtype: KVDType,
        kv: KVLayout,
        asked: AttentionChoice,
        memory: AttentionMemory,
    ) -> None:
        chains = {layer: choose(layer, dtype, kv, memory.gpu, asked) for layer in layers}
        self._memory = memory
        self._backends: dict[str, AttentionBackend] = {}
        for name in BACKENDS:
            if any(name in chain for chain in chains.values()):
                self._build(name, memory, is_asked=name == asked)
        #: the backends that serve, best first
        self.names = [*self._backends]
        self._chains = {
            layer: [self._backends[name] for name in chain if name in self._backends] for layer, chain in chains.items()
        }
        self._alone = [backend for backend in self._backends.values() if backend.decodes_alone][:1]
        #: see `AttentionBackend`
        self.short_chunk = max((backend.short_chunk for backend in self._backends.values()), default=1)
        limits = [backend.longest_captured for backend in self._backends.values()]
        #: see `AttentionBackend`
        self.longest_captured = min((limit for limit in limits if limit is not None), default=None)

    def _build(self, name: str, memory: AttentionMemory, *, is_asked: bool) -> None:
        """A backend that cannot be built here is left out, unless the user asked for it."""
        try:
            self._backends[name] = BACKENDS[name]()(memory)
        except KernelBuildError as error:
            if is_asked:
                raise
            print(f"octavo: attention by {name!r} is left out: {error}", file=sys.stderr)

    @property
    def num_bytes(self) -> int:
        """Memory that the backends have beside `AttentionMemory`."""
        return sum(backend.num_bytes for backend in self._backends.values())

    def plan(self, step: DeviceStep, *, is_fused: bool) -> None:
        """is_fused: its program attends and writes the cache by one op, so that nothing else reads a plan."""
        is_plain = not step.kind.has_chunks and step.kind.decode_threshold == 1
        alone = self._alone if is_fused and is_plain else []
        for backend in alone or self._backends.values():
            backend.plan(step)

    def decode(self, layer: AttentionLayer, transform: HeadTransform | None = None) -> AttentionLaunch:
        """The backend that takes plain decodes gets its workspace now, so that KV blocks leave room for it."""
        launch: AttentionLaunch = _unreachable
        in_parts = False
        for backend in reversed(self._chains[layer]):
            otherwise, launch = launch, backend.decode(layer, transform, launch)
            in_parts = in_parts if launch is otherwise else backend.decodes_in_parts
        if in_parts:
            self._memory.reserve_workspace()
        return launch

    def scales_projection(self, layer: AttentionLayer) -> bool:
        """Whether the layer's fused decodes do, whatever the step; see `AttentionBackend`."""
        first = self._chains[layer][0]
        return first.scales_projections and first.decodes_alone

    def prefill(self, layer: AttentionLayer) -> AttentionLaunch:
        launch: AttentionLaunch = _unreachable
        for backend in reversed(self._chains[layer]):
            launch = backend.prefill(layer, launch)
        return launch


def _unreachable(step: DeviceStep, q: Tensor, out: Tensor) -> None:
    raise AssertionError("the last backend of a chain leaves nothing to others")
