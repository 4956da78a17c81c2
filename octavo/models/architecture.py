"""Architecture: any checkpoint's configuration in one normal form.

Hugging Face's config.json and GGUF's metadata name the same things in dozens of ways. The loader turns both
into this record, and later code does not depend on the file. A family's differences are values here where
possible, and code in its file under models/ otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.errors import ModelLoadError
from octavo.kernels.mixture import SILU, Gate, Routing
from octavo.kernels.ops import Activation
from octavo.models.pooling import Classes, Pooling
from octavo.observe.logging import LOGGER
from octavo.quantization.described import Quantization
from octavo.shown import shown_names


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding: base frequency, share of the head that rotates, and long-context scaling.

    scaling: Hugging Face's `rope_scaling`/`rope_parameters` dict in its own words (rope_type: default,
    linear, llama3, longrope, yarn, dynamic); None is plain rope.
    """

    theta: float = 10_000.0
    partial_rotary_factor: float = 1.0
    scaling: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """Layers of experts. intermediate_size: of each expert. dense_layers: those with one MLP instead. shared_size: of
    the expert that computes every token; 0: there is none."""

    routing: Routing
    intermediate_size: int
    dense_layers: frozenset[int] = frozenset()
    shared_size: int = 0
    has_shared_gate: bool = False
    gate: Gate = SILU


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConfig:
    """Latent attention (see `octavo/kernels/latent.py`): the model's num_kv_heads is 1, and its head_dim the width of a
    latent and of the rotated key beside it. query_rank: of the small vector that queries come from; None: they do
    not."""

    rank: int
    key_dim: int
    rotary_dim: int
    value_dim: int
    query_rank: int | None = None
    interleaves: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model: a decoder, or an encoder.

    windows: per layer, the sliding window in tokens, or None for full attention.
    rope: None if positions are not rotated. local_rope: of sliding layers, if it differs from rope.
    num_position_embeddings: learned positions (GPT-2, OPT, BERT), else 0.
    embedding_scale, residual_scale, logits_scale: multiply embeddings, what a layer's halves add to the stream, logits.
    is_causal: False: an encoder, whose tokens see those after them, too. pooling: how it embeds; None: it generates.
    classes: those that it tells apart; None: it has no head for any.
    quantization: how the layers' matrices are stored; None: by each tensor's own type.
    eos_token_ids: from generation_config.json where there is one, else config.json or GGUF.
    """

    family: str  # key of models/registry.py: "llama", "qwen3", ...
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    norm_eps: float = 1e-5
    activation: Activation = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: RopeConfig | None = field(default_factory=RopeConfig)
    local_rope: RopeConfig | None = None
    windows: tuple[int | None, ...] = ()
    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    num_position_embeddings: int = 0
    is_causal: bool = True
    pooling: Pooling | None = None
    classes: Classes | None = None
    experts: ExpertsConfig | None = None
    latent: LatentConfig | None = None
    quantization: Quantization | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)  # a family's own values, documented in its file

    @property
    def takes_types(self) -> bool:
        """Whether a pair's texts have vectors of their own in the embedding; a table of one row tells nothing apart."""
        return int(self.extra.get("type_vocab_size", 0)) > 1

    @property
    def takes_whole_prompts(self) -> bool:
        """Whether a step has all of a sequence's tokens: each sees all others, or all are pooled."""
        of_tokens = self.classes is not None and self.classes.of_tokens
        return not self.is_causal or of_tokens or (self.pooling is not None and self.pooling.kind != "LAST")


def checked(path: Path, architecture: Architecture) -> Architecture:
    """The same architecture. Raises ModelLoadError with the path if its numbers contradict each other."""
    problem = _problem(architecture)
    if problem is not None:
        raise ModelLoadError(f"{path}: {problem}; download or convert the model again")
    return architecture


def known_tokens(token_ids: Sequence[int], vocab_size: int, where: str) -> tuple[int, ...]:
    """The ids inside the vocabulary. Ids of tokens that were added only to the tokenizer are never sampled; they are
    dropped with a warning. where: file and key."""
    unknown = [token_id for token_id in token_ids if token_id >= vocab_size]
    if unknown:
        LOGGER.warning(
            "%s names token %s, beyond the model's vocabulary of %d; it is ignored",
            *(where, shown_names([str(token_id) for token_id in unknown]), vocab_size),
        )
    return tuple(token_id for token_id in token_ids if token_id < vocab_size)


def _problem(a: Architecture) -> str | None:
    if a.num_heads % a.num_kv_heads:
        return f"{a.num_heads} attention heads do not share {a.num_kv_heads} key/value heads evenly"
    if a.num_position_embeddings and a.num_heads * a.head_dim != a.hidden_size:
        return f"{a.hidden_size} columns do not divide into {a.num_heads} attention heads"
    if a.num_position_embeddings and a.num_kv_heads != a.num_heads:
        return (
            f"a {a.family} model has a key/value head for each of {a.num_heads} attention heads, not {a.num_kv_heads}"
        )
    for rope in (a.rope, a.local_rope):
        problem = None if rope is None else _rope_problem(a, rope)
        if problem is not None:
            return problem
    return None


def _rope_problem(a: Architecture, rope: RopeConfig) -> str | None:
    if a.head_dim % 2:
        return f"heads have {a.head_dim} dimensions; where they rotate, allowed are even numbers"
    rotary_dim = round(a.head_dim * rope.partial_rotary_factor)
    if not 2 <= rotary_dim <= a.head_dim or rotary_dim % 2:
        return f"{rotary_dim} of a head's {a.head_dim} dimensions would rotate; allowed are even numbers up to all"
    if not rope.theta > 1:
        return f"the rotary base is {rope.theta}; allowed are numbers above 1"
    scaling = rope.scaling or {}
    rope_type = scaling.get("rope_type", "default")
    if rope_type == "dynamic" and rotary_dim < 4:
        return f"dynamic rope scaling cannot change {rotary_dim} rotated dimensions; allowed are 4 or more"
    if rope_type == "llama3" and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        return (
            f"llama3 rope scaling has low_freq_factor {scaling['low_freq_factor']:g} and high_freq_factor "
            f"{scaling['high_freq_factor']:g}; low_freq_factor must be the lower one"
        )
    if rope_type in ("longrope", "su"):
        for key in ("short_factor", "long_factor"):
            count = len(scaling.get(key, ()))
            if count != rotary_dim // 2:
                return (
                    f"rope scaling's {key} holds {count} factors; allowed are {rotary_dim // 2}, one for each pair "
                    f"of the {rotary_dim} rotated dimensions"
                )
    return None
