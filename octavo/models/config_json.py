"""Hugging Face's config.json to Architecture.

Each family has one function that reads the keys it has of its own; what all spell alike is read once. A key
that would change what the model computes and is not implemented is an error that names it; keys that only
matter in training (dropout, initialisation) are not looked at. Both spellings of rotary settings are read:
rope_theta with rope_scaling, and the newer rope_parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.errors import UnsupportedModelError
from octavo.models.architecture import Architecture, RopeConfig
from octavo.models.config_file import ConfigFile
from octavo.models.consistency import checked

_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su")
_MOST_LAYERS = 1 << 12


def architecture_from_config(path: Path, values: dict[str, Any]) -> Architecture:
    """`values` is the file's content, its token ids already those of generation_config.json where it has any."""
    config = ConfigFile(path, values)
    _refuse_quantised(config)
    name, read = _family(config)
    return checked(path, Architecture(family=name, **_ends(config), **read(config)))


def _refuse_quantised(config: ConfigFile) -> None:
    for key in ("quantization_config", "compression_config"):
        scheme = config.values.get(key)
        if scheme is not None:
            method = scheme.get("quant_method", scheme) if isinstance(scheme, dict) else scheme
            raise UnsupportedModelError(
                f"{config.path}: {key} asks for {method!r}; Octavo reads unquantised safetensors, and quantised "
                "weights as GGUF files: use the model's GGUF version"
            )


def _family(config: ConfigFile) -> tuple[str, Callable[[ConfigFile], dict[str, Any]]]:
    classes = config.values.get("architectures")
    if isinstance(classes, list) and classes:
        known = [FAMILIES[name] for name in classes if name in FAMILIES]
        found = f"architectures is {classes!r}"
    else:
        model_type = config.values.get("model_type")
        known = [MODEL_TYPES[model_type]] if model_type in MODEL_TYPES else []
        found = f"model_type is {model_type!r}"
    if not known:
        raise UnsupportedModelError(f"{config.path}: {found}; Octavo knows {', '.join(FAMILIES)}")
    return known[0]


def _ends(config: ConfigFile) -> dict[str, Any]:
    bos = config.token_ids("bos_token_id")
    return {"bos_token_id": bos[0] if bos else None, "eos_token_ids": config.token_ids("eos_token_id")}


def _llama_like(config: ConfigFile, *, ties_by_default: bool = False, default_eps: float = 1e-6) -> dict[str, Any]:
    """Keys that Llama and its descendants spell alike."""
    hidden_size, num_heads = config.size("hidden_size"), config.size("num_attention_heads")
    return {
        "vocab_size": config.size("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": config.size("num_hidden_layers", largest=_MOST_LAYERS),
        "num_heads": num_heads,
        "num_kv_heads": config.size("num_key_value_heads", num_heads),
        "head_dim": config.size("head_dim", max(1, hidden_size // num_heads)),
        "intermediate_size": config.size("intermediate_size"),
        "max_position_embeddings": config.size("max_position_embeddings"),
        "norm_eps": config.number("rms_norm_eps", default_eps),
        "tie_word_embeddings": config.flag("tie_word_embeddings", ties_by_default),
    }


def _llama(config: ConfigFile) -> dict[str, Any]:
    return _llama_like(config) | {
        "activation": config.activation("hidden_act", "silu"),
        "attention_bias": config.flag("attention_bias", False),
        "mlp_bias": config.flag("mlp_bias", False),
        "rope": _rope(config),
    }


def _mistral(config: ConfigFile) -> dict[str, Any]:
    return _llama_like(config) | {
        "activation": config.activation("hidden_act", "silu"),
        "rope": _rope(config),
        "windows": _windows(config, lambda layer: True),
    }


def _qwen(config: ConfigFile) -> dict[str, Any]:
    """Qwen 2's own biases are in its table of tensors; Qwen 3 may have them on all four projections."""
    slides = config.flag("use_sliding_window", False)
    first_window = config.values.get("max_window_layers", 0)
    if type(first_window) is not int:
        raise config.wrong("max_window_layers", "a number of layers")
    return _llama_like(config) | {
        "activation": config.activation("hidden_act", "silu"),
        "attention_bias": config.flag("attention_bias", False),
        "rope": _rope(config),
        "windows": _windows(config, lambda layer: layer >= first_window) if slides else (),
    }


def _phi3(config: ConfigFile) -> dict[str, Any]:
    config.refuse("attention_bias", False)
    return _llama_like(config, default_eps=1e-5) | {
        "activation": config.activation("hidden_act", "silu"),
        "rope": _rope(config),
        "windows": _windows(config, lambda layer: True),
    }


def _gemma(config: ConfigFile) -> dict[str, Any]:
    return _llama_like(config, ties_by_default=True) | {
        "head_dim": config.size("head_dim", 256),
        "activation": config.activation("hidden_activation", "gelu_pytorch_tanh"),
        "attention_bias": config.flag("attention_bias", False),
        "attention_scale": config.number("query_pre_attn_scalar", 256) ** -0.5,
    }


def _gemma2(config: ConfigFile) -> dict[str, Any]:
    return _gemma(config) | {
        "rope": _rope(config),
        "windows": _windows(config, lambda layer: layer % 2 == 0),
        "attention_softcap": config.optional_number("attn_logit_softcapping", 50.0),
        "logits_softcap": config.optional_number("final_logit_softcapping", 30.0),
    }


def _gemma3(config: ConfigFile) -> dict[str, Any]:
    config.refuse("use_bidirectional_attention", False)
    pattern = config.size("sliding_window_pattern", 6)
    return _gemma(config) | {
        "rope": _rope(config, default_theta=1_000_000.0, layer_type="full_attention"),
        "local_rope": _local_rope(config),
        "windows": _windows(config, lambda layer: (layer + 1) % pattern != 0),
        "attention_softcap": config.optional_number("attn_logit_softcapping"),
        "logits_softcap": config.optional_number("final_logit_softcapping"),
    }


def _gpt2(config: ConfigFile) -> dict[str, Any]:
    config.refuse("add_cross_attention", False)
    hidden_size, num_heads, length = config.size("n_embd"), config.size("n_head"), config.size("n_positions", 1024)
    return {
        "vocab_size": config.size("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": config.size("n_layer", largest=_MOST_LAYERS),
        "intermediate_size": config.size("n_inner", 4 * hidden_size),
        "norm_eps": config.number("layer_norm_epsilon", 1e-5),
        "activation": config.activation("activation_function", "gelu_new"),
        "tie_word_embeddings": config.flag("tie_word_embeddings", True),
        "extra": _extra(config, "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
    } | _learned_positions(hidden_size, num_heads, length)


def _opt(config: ConfigFile) -> dict[str, Any]:
    config.refuse("_remove_final_layer_norm", False)
    hidden_size, num_heads = config.size("hidden_size"), config.size("num_attention_heads")
    return {
        "vocab_size": config.size("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": config.size("num_hidden_layers", largest=_MOST_LAYERS),
        "intermediate_size": config.size("ffn_dim"),
        "activation": config.activation("activation_function", "relu"),
        "tie_word_embeddings": config.flag("tie_word_embeddings", True),
        "extra": _extra(
            config, "do_layer_norm_before", "word_embed_proj_dim", "enable_bias", "layer_norm_elementwise_affine"
        ),
    } | _learned_positions(hidden_size, num_heads, config.size("max_position_embeddings"))


def _learned_positions(hidden_size: int, num_heads: int, length: int) -> dict[str, Any]:
    return {
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": max(1, hidden_size // num_heads),
        "max_position_embeddings": length,
        "num_position_embeddings": length,
        "rope": None,
        "attention_bias": True,
        "mlp_bias": True,
    }


def _extra(config: ConfigFile, *keys: str) -> dict[str, Any]:
    return {key: config.values[key] for key in keys if config.values.get(key) is not None}


FamilyReader = tuple[str, Callable[[ConfigFile], dict[str, Any]]]
FAMILIES: dict[str, FamilyReader] = {
    "LlamaForCausalLM": ("llama", _llama),
    "MistralForCausalLM": ("mistral", _mistral),
    "Qwen2ForCausalLM": ("qwen2", _qwen),
    "Qwen3ForCausalLM": ("qwen3", _qwen),
    "Gemma2ForCausalLM": ("gemma2", _gemma2),
    "Gemma3ForCausalLM": ("gemma3", _gemma3),
    "Phi3ForCausalLM": ("phi3", _phi3),
    "GPT2LMHeadModel": ("gpt2", _gpt2),
    "OPTForCausalLM": ("opt", _opt),
}
#: For a config.json that names no class.
MODEL_TYPES: dict[str, FamilyReader] = {name: (name, read) for name, read in FAMILIES.values()}
MODEL_TYPES["gemma3_text"] = MODEL_TYPES["gemma3"]


def _windows(config: ConfigFile, slides: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Each layer's window: layer_types decides where it is given, else the family's rule."""
    window, num_layers = config.optional_size("sliding_window"), config.size("num_hidden_layers", largest=_MOST_LAYERS)
    if window is None:
        return ()
    layer_types = config.values.get("layer_types")
    if layer_types is None:
        return tuple(window if slides(layer) else None for layer in range(num_layers))
    choices = {"sliding_attention": window, "full_attention": None}
    if not isinstance(layer_types, list) or len(layer_types) != num_layers or set(layer_types) - set(choices):
        raise config.wrong("layer_types", f"{num_layers} times sliding_attention or full_attention")
    return tuple(choices[layer_type] for layer_type in layer_types)


def _rope(config: ConfigFile, default_theta: float = 10_000.0, layer_type: str = "") -> RopeConfig:
    """From rope_parameters, or from rope_theta and rope_scaling; layer_type picks one of several settings."""
    key = "rope_parameters" if config.values.get("rope_parameters") is not None else "rope_scaling"
    given = config.values.get(key) or {}
    if not isinstance(given, dict):
        raise config.wrong(key, "an object")
    if layer_type and isinstance(given.get(layer_type), dict):
        given = given[layer_type]
    rope_type = given.get("rope_type", given.get("type", "default"))
    if rope_type not in _ROPE_TYPES:
        raise UnsupportedModelError(
            f"{config.path}: {key}'s rope_type is {rope_type!r}; Octavo knows {', '.join(_ROPE_TYPES)}"
        )
    outside = ConfigFile(config.path, {**config.values, **given})
    scaling = {name: value for name, value in given.items() if name not in ("rope_theta", "partial_rotary_factor")}
    trained_len = config.optional_size("original_max_position_embeddings")
    if trained_len is not None:
        scaling.setdefault("original_max_position_embeddings", trained_len)
    return RopeConfig(
        theta=outside.number("rope_theta", default_theta),
        partial_rotary_factor=outside.number("partial_rotary_factor", 1.0),
        scaling=None if rope_type == "default" else scaling,
    )


def _local_rope(config: ConfigFile) -> RopeConfig:
    """Gemma 3's sliding layers, whose rope is never scaled unless rope_parameters says so."""
    parameters = config.values.get("rope_parameters")
    if isinstance(parameters, dict) and isinstance(parameters.get("sliding_attention"), dict):
        return _rope(config, layer_type="sliding_attention")
    return RopeConfig(theta=config.number("rope_local_base_freq", 10_000.0))
