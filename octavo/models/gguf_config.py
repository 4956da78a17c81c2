"""GGUF metadata to Architecture.

Keys are `general.*`, `tokenizer.*` and `{architecture}.*`. llama.cpp has some values in its code, so GGUF leaves them
out (Gemma's window pattern and local rope, special values of one model size); they are filled in here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.models.architecture import Architecture, RopeConfig, checked, known_tokens
from octavo.models.gguf import GGUFFile
from octavo.models.gguf_experts import experts_config, gpt_oss, olmoe, qwen2_moe, qwen3_moe
from octavo.models.gguf_latent import deepseek2
from octavo.models.gguf_metadata import GGUFMetadata
from octavo.models.gguf_rope import gguf_rope
from octavo.models.gguf_values import StringArray
from octavo.models.llama_json import FACTORS
from octavo.shown import shown

#: tokens that end a chat model's turn; many files do not name them
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
_TURN_ENDS_OF = {"gpt-oss": ("<|return|>", "<|call|>")}  # where <|end|> ends thoughts, too
_CONTROL = 3  # of tokenizer.ggml.token_type
_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def architecture_from_gguf(file: GGUFFile) -> Architecture:
    """The model's configuration, from the metadata and, for what it lacks, the tensors."""
    config = GGUFMetadata(file)
    if config.architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"{file.path}: general.architecture is {shown(config.architecture)}; "
            f"Octavo reads GGUF files of {', '.join(FAMILIES)}"
        )
    if config.number("expert_count", 0) and config.architecture not in _WITH_EXPERTS:
        raise UnsupportedModelError(
            f"{file.path}: {config.architecture}.expert_count is {config.size('expert_count')}; Octavo reads experts "
            f"of {', '.join(sorted(_WITH_EXPERTS))}"
        )
    values = _common(config) | FAMILIES[config.architecture](config)
    return checked(file.path, Architecture(**values))


def _common(config: GGUFMetadata) -> dict[str, Any]:
    """The values that all families share."""
    hidden_size, num_heads = config.size("embedding_length"), config.size("attention.head_count")
    head_dim = config.head_dim
    if config.size("attention.value_length", head_dim) != head_dim and config.architecture != "deepseek2":
        raise UnsupportedModelError(f"{config.file.path}: keys and values of different lengths are not supported")
    return {
        "family": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": hidden_size,
        "num_layers": config.num_layers,
        "num_heads": num_heads,
        "num_kv_heads": config.size("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "intermediate_size": config.size("feed_forward_length"),
        "max_position_embeddings": config.size("context_length"),
        "norm_eps": _norm_eps(config),
        "tie_word_embeddings": "output.weight" not in config.file.tensors,
        "bos_token_id": next(iter(_known(config, "bos_token_id")), None),
        "eos_token_ids": _eos_token_ids(config),
        "attention_scale": config.optional_number("attention.scale"),
        "attention_softcap": config.optional_number("attn_logit_softcapping", above=0),
        "logits_softcap": config.optional_number("final_logit_softcapping", above=0),
    }


def _norm_eps(config: GGUFMetadata) -> float:
    plain = "attention.layer_norm_epsilon"
    return config.number(plain if config.has(plain) else "attention.layer_norm_rms_epsilon", least=0)


def _eos_token_ids(config: GGUFMetadata) -> tuple[int, ...]:
    """The end tokens that the file names and, for a chat model, those that end a turn."""
    ids: list[int | None] = [token_id for key in _EOS_KEYS for token_id in _known(config, key)]
    metadata = config.file.metadata
    tokens, types = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    is_chat = "tokenizer.chat_template" in metadata
    if is_chat and isinstance(tokens, StringArray) and isinstance(types, np.ndarray) and len(types) == len(tokens):
        found = (tokens.index(text) for text in _TURN_ENDS_OF.get(config.architecture, _TURN_ENDS))
        ids += [token_id for token_id in found if token_id is not None and types[token_id] == _CONTROL]
    return tuple(dict.fromkeys(token_id for token_id in ids if token_id is not None))


def _known(config: GGUFMetadata, key: str) -> tuple[int, ...]:
    token_id = config.token_id(key)
    where = f"{config.file.path}: metadata key 'tokenizer.ggml.{key}'"
    return () if token_id is None else known_tokens((token_id,), config.vocab_size, where)


def _llama(config: GGUFMetadata) -> dict[str, Any]:
    """With experts it is Mixtral."""
    tensors = config.file.tensors
    if config.number("expert_count", 0):
        experts = experts_config(config, "feed_forward_length", renormalises=True)
        return {"family": "mixtral", "rope": gguf_rope(config), "windows": _same_windows(config), "experts": experts}
    has_bias = {name: f"blk.0.{name}.bias" in tensors for name in ("attn_q", "attn_output", "ffn_down")}
    is_qwen = has_bias["attn_q"] and not has_bias["attn_output"]  # converted from one, but for the biases
    return {
        "family": "qwen2" if is_qwen else "llama",
        "rope": gguf_rope(config),
        "windows": _same_windows(config),
        "attention_bias": has_bias["attn_output"],
        "mlp_bias": has_bias["ffn_down"],
    }


def _qwen(config: GGUFMetadata) -> dict[str, Any]:
    return {"rope": gguf_rope(config)}


def _granite(config: GGUFMetadata) -> dict[str, Any]:
    return {
        "rope": gguf_rope(config),
        "attention_scale": config.number("attention.scale", 1.0, **FACTORS),
        "embedding_scale": config.number("embedding_scale", 1.0, **FACTORS),
        "residual_scale": config.number("residual_scale", 1.0, **FACTORS),
        "logits_scale": 1 / config.number("logit_scale", 1.0, **FACTORS),
    }


def _granite_moe(config: GGUFMetadata) -> dict[str, Any]:
    experts = experts_config(config, "feed_forward_length", renormalises=True)
    shared = config.size("expert_shared_feed_forward_length", 0, smallest=0)
    return _granite(config) | {"experts": replace(experts, shared_size=shared)}


def _gemma2(config: GGUFMetadata) -> dict[str, Any]:
    """Every other layer slides, the first one included."""
    window = config.size("attention.sliding_window", 4096)
    return {
        "activation": "gelu_tanh",
        "rope": gguf_rope(config),
        "windows": tuple(window if layer % 2 == 0 else None for layer in range(config.num_layers)),
        "attention_scale": _gemma_scale(config),
        "attention_softcap": config.number("attn_logit_softcapping", 50.0, above=0),
        "logits_softcap": config.number("final_logit_softcapping", 30.0, above=0),
    }


def _gemma3(config: GGUFMetadata) -> dict[str, Any]:
    window = config.optional_size("attention.sliding_window")
    is_global = _global_layers(config, config.num_layers)
    return {
        "activation": "gelu_tanh",
        "rope": gguf_rope(config, default_theta=1_000_000.0),
        "local_rope": RopeConfig(theta=config.number("rope.freq_base_swa", 10_000.0)),
        "windows": tuple(None if full else window for full in is_global) if window else (),
        "attention_scale": _gemma_scale(config),
    }


def _gemma_scale(config: GGUFMetadata) -> float:
    """The 27B models scale by the hidden size per head; GGUF does not say so."""
    is_27b = (config.architecture, config.num_layers) in (("gemma2", 46), ("gemma3", 62))
    head_dim = config.size("embedding_length") / config.size("attention.head_count") if is_27b else config.head_dim
    return config.number("attention.scale", head_dim**-0.5)


def _global_layers(config: GGUFMetadata, num_layers: int) -> list[bool]:
    """Which layers have full attention: every sixth, unless the file says otherwise."""
    pattern = config.file.metadata.get(f"{config.architecture}.attention.sliding_window_pattern", 6)
    if isinstance(pattern, int):
        return [(index + 1) % pattern == 0 if pattern > 0 else True for index in range(num_layers)]
    if isinstance(pattern, (str, float, StringArray)) or len(pattern) != num_layers:
        raise ModelLoadError(
            f"{config.file.path}: {config.architecture}.attention.sliding_window_pattern must be a number or "
            f"{num_layers} flags"
        )
    return [not is_sliding for is_sliding in pattern]


def _phi3(config: GGUFMetadata) -> dict[str, Any]:
    return {"rope": gguf_rope(config), "windows": _same_windows(config)}


def _gpt2(config: GGUFMetadata) -> dict[str, Any]:
    biases = {"attention_bias": True, "mlp_bias": True}
    length = config.size("context_length")
    return {"activation": "gelu_tanh", "rope": None, "num_position_embeddings": length, **biases}


FAMILIES: dict[str, Callable[[GGUFMetadata], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "qwen2moe": qwen2_moe,
    "qwen3moe": qwen3_moe,
    "olmo2": _qwen,
    "olmoe": olmoe,
    "granite": _granite,
    "granitemoe": _granite_moe,
    "gpt-oss": gpt_oss,
    "deepseek2": deepseek2,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "gpt2": _gpt2,
}
_WITH_EXPERTS = frozenset({"llama", "qwen2moe", "qwen3moe", "olmoe", "granitemoe", "gpt-oss", "deepseek2"})
#: names of families that differ from GGUF's
_OWN_NAMES = {
    "qwen2moe": ("qwen2_moe",),
    "qwen3moe": ("qwen3_moe",),
    "llama": ("llama", "mistral", "mixtral"),
    "gpt-oss": ("gpt_oss",),
    "deepseek2": ("deepseek_v2", "deepseek_v3"),
}
#: the families whose models GGUF files hold; Mistral's are Llama's there
FAMILIES_READ = frozenset(family for name in FAMILIES for family in _OWN_NAMES.get(name, (name,)))


def _same_windows(config: GGUFMetadata) -> tuple[int | None, ...]:
    window = config.optional_size("attention.sliding_window")
    return (window,) * config.num_layers if window else ()
