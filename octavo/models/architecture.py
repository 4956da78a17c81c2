"""Architecture: any checkpoint's configuration in one normal form.

Hugging Face's config.json and GGUF's metadata name the same things in dozens of ways. The loader turns both
into this record; from here on nothing knows where a model came from. What a family does differently is a
value here where a value can say it, and code in its file under models/ where it cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from octavo.kernels.ops import Activation
from octavo.kernels.parameters import Scheme


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
class Architecture:
    """One decoder-only model.

    windows: per layer, the sliding window in tokens, or None for full attention.
    rope, local_rope: rotation of full-attention and of sliding layers (the same unless a family differs);
    None: positions are not rotated. num_position_embeddings: learned positions (GPT-2, OPT), else 0.
    scheme: how the layers' matrices are stored, where it is not told by each tensor's own type.
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
    num_position_embeddings: int = 0
    scheme: Scheme | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)  # a family's own values, documented in its file
