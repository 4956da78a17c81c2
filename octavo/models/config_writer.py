"""An Architecture as a config.json: what a model gets whose configuration is in a GGUF file.

The file is read back before it is used, and must say what it was made from: a model that Hugging Face's keys cannot
describe is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from octavo.errors import UnsupportedModelError
from octavo.models.architecture import Architecture, RopeConfig
from octavo.models.config_json import architecture_from_config

_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "relu": "relu"}


def config_of(a: Architecture, dtype: str) -> dict[str, Any]:
    """dtype: of the dense tensors, in torch's name. Raises UnsupportedModelError."""
    if a.family not in _FAMILIES:
        raise UnsupportedModelError(
            f"the model's family is {a.family!r}, whose GGUF files have no config.json here; allowed are "
            f"{', '.join(_FAMILIES)}: take the model as safetensors"
        )
    class_name, more = _FAMILIES[a.family]
    if a.family == "llama" and a.windows:
        class_name, more = _FAMILIES["mistral"]
    written = {"architectures": [class_name], "dtype": dtype, **_shared(a), **more(a)}
    found = architecture_from_config(Path("config.json"), written)
    expected = replace(a, family=found.family if a.family == "llama" else a.family, quantization=None)
    wrong = [one.name for one in fields(Architecture) if getattr(found, one.name) != getattr(expected, one.name)]
    if wrong:
        raise UnsupportedModelError(
            f"a config.json of {class_name} cannot say what the GGUF file says of {', '.join(wrong)}: take the model "
            "as safetensors"
        )
    return written


def _shared(a: Architecture) -> dict[str, Any]:
    keys = {
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "num_hidden_layers": a.num_layers,
        "num_attention_heads": a.num_heads,
        "num_key_value_heads": a.num_kv_heads,
        "head_dim": a.head_dim,
        "intermediate_size": a.intermediate_size,
        "max_position_embeddings": a.max_position_embeddings,
        "rms_norm_eps": a.norm_eps,
        "tie_word_embeddings": a.tie_word_embeddings,
        "hidden_act": _ACTIVATIONS[a.activation],
        "bos_token_id": a.bos_token_id,
        "eos_token_id": list(a.eos_token_ids),
    }
    return keys | ({} if a.rope is None else _rope(a.rope))


def _rope(rope: RopeConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": rope.scaling}
    return keys if rope.partial_rotary_factor == 1 else keys | {"partial_rotary_factor": rope.partial_rotary_factor}


def _llama(a: Architecture) -> dict[str, Any]:
    return {"model_type": "llama", "attention_bias": a.attention_bias, "mlp_bias": a.mlp_bias}


def _mistral(a: Architecture) -> dict[str, Any]:
    return {"model_type": "mistral", "sliding_window": next(iter(a.windows), None)}


def _qwen(a: Architecture) -> dict[str, Any]:
    return {"model_type": a.family, "attention_bias": a.attention_bias, "use_sliding_window": False}


def _phi3(a: Architecture) -> dict[str, Any]:
    return {"model_type": "phi3", "sliding_window": next(iter(a.windows), None)}


def _gemma(a: Architecture) -> dict[str, Any]:
    assert a.attention_scale is not None, "the reader of GGUF states it"
    window = next((window for window in a.windows if window is not None), None)
    kinds = ["full_attention" if window is None else "sliding_attention" for window in a.windows]
    return {
        "model_type": "gemma2",
        "hidden_activation": _ACTIVATIONS[a.activation],
        "query_pre_attn_scalar": round(a.attention_scale**-2),
        "attn_logit_softcapping": a.attention_softcap,
        "final_logit_softcapping": a.logits_softcap,
        "sliding_window": window,
        "layer_types": kinds,
        "attention_bias": a.attention_bias,
    }


def _gemma3(a: Architecture) -> dict[str, Any]:
    assert a.local_rope is not None, "the reader of GGUF states it"
    return _gemma(a) | {"model_type": "gemma3_text", "rope_local_base_freq": a.local_rope.theta}


def _experts(a: Architecture) -> dict[str, Any]:
    assert a.experts is not None, "the family has experts"
    routing = a.experts.routing
    return {
        "num_experts": routing.num_experts,
        "num_experts_per_tok": routing.num_chosen,
        "moe_intermediate_size": a.experts.intermediate_size,
        "norm_topk_prob": routing.renormalises,
        "mlp_only_layers": sorted(a.experts.dense_layers),
    }


def _mixtral(a: Architecture) -> dict[str, Any]:
    count = _experts(a)
    sizes = {"num_local_experts": count["num_experts"], "num_experts_per_tok": count["num_experts_per_tok"]}
    return _mistral(a) | sizes | {"model_type": "mixtral"}


def _qwen2_moe(a: Architecture) -> dict[str, Any]:
    assert a.experts is not None, "the family has experts"
    shared = {"shared_expert_intermediate_size": a.experts.shared_size, "qkv_bias": a.extra["qkv_bias"]}
    return _qwen(a) | _experts(a) | shared


def _qwen3_moe(a: Architecture) -> dict[str, Any]:
    return _qwen(a) | _experts(a)


_FAMILIES: dict[str, tuple[str, Callable[[Architecture], dict[str, Any]]]] = {
    "llama": ("LlamaForCausalLM", _llama),
    "mistral": ("MistralForCausalLM", _mistral),
    "mixtral": ("MixtralForCausalLM", _mixtral),
    "qwen2": ("Qwen2ForCausalLM", _qwen),
    "qwen3": ("Qwen3ForCausalLM", _qwen),
    "qwen2_moe": ("Qwen2MoeForCausalLM", _qwen2_moe),
    "qwen3_moe": ("Qwen3MoeForCausalLM", _qwen3_moe),
    "gemma2": ("Gemma2ForCausalLM", _gemma),
    "gemma3": ("Gemma3ForCausalLM", _gemma3),
    "phi3": ("Phi3ForCausalLM", _phi3),
}
