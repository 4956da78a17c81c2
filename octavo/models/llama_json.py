"""config.json of Llama and its descendants: the keys they share, and those of Mistral, Qwen, Granite and OLMo 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo.models.config_file import ConfigFile
from octavo.models.rope_json import rope_config

MOST_LAYERS = 1 << 12
#: bounds of a scale: far outside any real one, and safe in float32
FACTORS = {"least": 1e-6, "most": 1e6}


def sizes(config: ConfigFile) -> dict[str, Any]:
    """Of any transformer, in which each head has a share of the hidden size, and keys of its own."""
    hidden_size, num_heads = config.size("hidden_size"), config.size("num_attention_heads")
    return {
        "vocab_size": config.size("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": config.size("num_hidden_layers", largest=MOST_LAYERS),
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": max(1, hidden_size // num_heads),
        "intermediate_size": config.size("intermediate_size"),
    }


def llama_like(config: ConfigFile, *, ties_by_default: bool = False, default_eps: float = 1e-6) -> dict[str, Any]:
    """The keys that Llama and its descendants share."""
    found = sizes(config)
    return {
        **found,
        "num_kv_heads": config.size("num_key_value_heads", found["num_heads"]),
        "head_dim": config.size("head_dim", found["head_dim"]),
        "max_position_embeddings": config.size("max_position_embeddings"),
        "norm_eps": config.number("rms_norm_eps", default_eps, least=0),
        "tie_word_embeddings": config.flag("tie_word_embeddings", ties_by_default),
    }


def llama(config: ConfigFile) -> dict[str, Any]:
    return llama_like(config) | {
        "activation": config.activation("hidden_act", "silu"),
        "attention_bias": config.flag("attention_bias", False),
        "mlp_bias": config.flag("mlp_bias", False),
        "rope": rope_config(config),
    }


def mistral(config: ConfigFile) -> dict[str, Any]:
    return llama_like(config) | {
        "activation": config.activation("hidden_act", "silu"),
        "rope": rope_config(config),
        "windows": windows(config, lambda layer: True),
    }


def qwen(config: ConfigFile) -> dict[str, Any]:
    """Qwen 2's biases are in its table of tensors; Qwen 3 may have biases on all four projections."""
    slides = config.flag("use_sliding_window", False)
    first_window = config.size("max_window_layers", 0, smallest=0)
    return llama_like(config) | {
        "activation": config.activation("hidden_act", "silu"),
        "attention_bias": config.flag("attention_bias", False),
        "rope": rope_config(config),
        "windows": windows(config, lambda layer: layer >= first_window) if slides else (),
    }


def granite(config: ConfigFile) -> dict[str, Any]:
    """Factors of the stream; `logits_scaling` divides."""
    return llama(config) | {
        "embedding_scale": config.number("embedding_multiplier", 1.0, **FACTORS),
        "residual_scale": config.number("residual_multiplier", 1.0, **FACTORS),
        "attention_scale": config.number("attention_multiplier", 1.0, **FACTORS),
        "logits_scale": 1 / config.number("logits_scaling", 1.0, **FACTORS),
    }


def olmo2(config: ConfigFile) -> dict[str, Any]:
    return llama(config) | {"norm_eps": config.number("rms_norm_eps", 1e-5, least=0)}


def windows(config: ConfigFile, slides: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Each layer's window: by layer_types if the file has it, else by the family's rule."""
    window, num_layers = config.optional_size("sliding_window"), config.size("num_hidden_layers", largest=MOST_LAYERS)
    if window is None:
        return ()
    layer_types = config.values.get("layer_types")
    if layer_types is None:
        return tuple(window if slides(layer) else None for layer in range(num_layers))
    choices = {"sliding_attention": window, "full_attention": None}
    if (
        not isinstance(layer_types, list)
        or len(layer_types) != num_layers
        or not all(isinstance(layer_type, str) and layer_type in choices for layer_type in layer_types)
    ):
        raise config.wrong("layer_types", f"{num_layers} times sliding_attention or full_attention")
    return tuple(choices[layer_type] for layer_type in layer_types)
