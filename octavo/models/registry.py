"""The model families that Octavo knows, and how to build one.

A family is two functions: the table of tensors it needs, and the decoder built from them. For a family with experts
`_mixture` makes both from those of the same model without them. A new family gets its file and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.kernels.attention_layer import KVScales
from octavo.models import bert, deepseek, gpt2, llama, mixtures, modernbert
from octavo.models.architecture import Architecture
from octavo.models.classifier import classifier_tensors
from octavo.models.decoder import AttentionSpecs, Decoder, LayerSlot
from octavo.models.mixtures import ExpertNames, layer_mlp, with_experts
from octavo.models.weights import TensorSource, TensorTable, Weights, scheme_in


@dataclass(frozen=True, slots=True)
class Family:
    tensors: Callable[[Architecture], TensorTable]
    build: Callable[[Architecture, Weights, AttentionSpecs], Decoder]


def _mixture(
    names: ExpertNames,
    tensors: Callable[[Architecture], TensorTable] = llama.tensors,
    build: Callable[..., Decoder] = llama.build,
) -> Family:
    """Layers of experts, called by these names. tensors: as if each layer had one MLP. build: takes what builds a
    layer's MLP as `mlp`."""

    def with_mixtures(a: Architecture, weights: Weights, specs: AttentionSpecs) -> Decoder:
        return build(a, weights, specs, mlp=lambda index, w: layer_mlp(a, index, w, names))

    return Family(lambda a: with_experts(a, tensors(a), names), with_mixtures)


FAMILIES: dict[str, Family] = {
    "llama": Family(llama.tensors, llama.build),
    "mistral": Family(llama.tensors, llama.build),
    "qwen2": Family(llama.qwen2_tensors, llama.build),
    "qwen3": Family(llama.qwen3_tensors, llama.build),
    "mixtral": _mixture(mixtures.MIXTRAL),
    "qwen2_moe": _mixture(mixtures.QWEN, mixtures.qwen2_tensors),
    "qwen3_moe": _mixture(mixtures.QWEN, llama.qwen3_tensors),
    "glm4_moe": _mixture(mixtures.GLM, mixtures.glm4_tensors),
    "deepseek_v2": _mixture(mixtures.DEEPSEEK_V2, deepseek.tensors, deepseek.build),
    "deepseek_v3": _mixture(mixtures.DEEPSEEK_V3, deepseek.tensors, deepseek.build),
    "gpt_oss": _mixture(mixtures.GPT_OSS, mixtures.gpt_oss_tensors),
    "olmoe": _mixture(mixtures.QWEN, mixtures.olmoe_tensors),
    "granitemoe": _mixture(mixtures.GRANITE),
    "granite": Family(llama.tensors, llama.build),
    "olmo2": Family(llama.olmo2_tensors, llama.build_olmo2),
    "phi3": Family(llama.phi3_tensors, llama.build_phi3),
    "gemma2": Family(llama.gemma2_tensors, llama.build_gemma),
    "gemma3": Family(llama.gemma3_tensors, llama.build_gemma),
    "gpt2": Family(gpt2.tensors, gpt2.build),
    "opt": Family(gpt2.opt_tensors, gpt2.build_opt),
    "bert": Family(bert.tensors, bert.build),
    "roberta": Family(bert.tensors, bert.build),
    "mpnet": Family(bert.mpnet_tensors, bert.build_mpnet),
    "modernbert": Family(modernbert.tensors, modernbert.build),
}


def parameters_of(architecture: Architecture) -> TensorTable:
    """Name and shape of every parameter, however it is stored."""
    return _family(architecture).tensors(architecture) | classifier_tensors(architecture)


def required_tensors(architecture: Architecture) -> TensorTable:
    """Name and shape of every tensor the model needs; reads no weights."""
    table = parameters_of(architecture)
    found: TensorTable = {}
    for name, shape in table.items():
        scheme = scheme_in(architecture.quantization, name, shape)
        found |= {name: shape} if scheme is None else scheme.tensors(name, shape)
    return found


def quantised_tensors(architecture: Architecture) -> frozenset[str]:
    """The tensors that a scheme reads together: codes, scales, zeros."""
    table = parameters_of(architecture)
    schemes = ((entry, scheme_in(architecture.quantization, *entry)) for entry in table.items())
    return frozenset(name for entry, scheme in schemes if scheme is not None for name in scheme.tensors(*entry))


def build_model(
    architecture: Architecture,
    source: TensorSource,
    layer_slots: Sequence[LayerSlot],
    max_model_len: int,
    rank: int = 0,
    num_ranks: int = 1,
    layers: range | None = None,
    scales: Mapping[int, KVScales] = MappingProxyType({}),
    *,
    divides_experts: bool = False,
    num_redundant: int | None = None,
) -> Decoder:
    """Bind a checkpoint's tensors, or a rank's parts of them, to its family's decoder.

    layer_slots: for each layer, the cache group and the place in it that hold its keys and values. layers: those of the
    rank's stage; None: all. Nothing is read of the others. scales: of an 8-bit KV cache, for the rank's heads.
    divides_experts: the ranks have some of a mixture's experts each, not a part of every one. num_redundant: copies
    beside them, all of which change places; None: experts stay where they are.
    """
    learned = architecture.num_position_embeddings
    if learned and max_model_len > learned:
        raise ConfigError(
            f"max_model_len is {max_model_len}, but this {architecture.family} model learned positions for "
            f"{learned} tokens; allowed is {learned} or less"
        )
    if divides_experts and architecture.experts is None:
        raise ConfigError(
            f"enable_expert_parallel is True, but this {architecture.family} model has no experts: leave it out"
        )
    family, shared = _family(architecture), (rank, num_ranks, divides_experts, num_redundant)
    weights = Weights(source, family.tensors(architecture), architecture.quantization, *shared)
    whole = family.build(architecture, weights, AttentionSpecs(architecture, layer_slots, max_model_len, scales))
    if architecture.pooling is not None:
        return replace(whole, head=None, embeds=True)
    return whole if layers is None or len(layers) == architecture.num_layers else whole.stage(layers)


def _family(architecture: Architecture) -> Family:
    if architecture.family not in FAMILIES:
        raise UnsupportedModelError(
            f"the model's family is {architecture.family!r}; Octavo knows {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[architecture.family]
