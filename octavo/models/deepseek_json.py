"""config.json of DeepSeek V2 and V3, and of Kimi K2: latent attention, and how the router chooses."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

from octavo.kernels.mixture import Routing
from octavo.models.architecture import ExpertsConfig, LatentConfig, RopeConfig
from octavo.models.config_file import ConfigFile
from octavo.models.llama_json import llama_like
from octavo.models.mixture_json import MOST_EXPERTS, gate, guessing_layers, routing_of
from octavo.models.rope_json import rope_config


def deepseek_v2(config: ConfigFile) -> dict[str, Any]:
    """Groups of experts are scored by their best one."""
    config.refuse("topk_method", "greedy", "group_limited_greedy")
    config.refuse("scoring_func", "softmax")
    config.refuse("norm_topk_prob", False)
    routing = routing_of(
        config,
        "n_routed_experts",
        renormalises=False,
        scale=config.number("routed_scaling_factor", 1.0, above=0),
        has_groups=config.text("topk_method", "greedy") == "group_limited_greedy",
    )
    found = _with_latents(config, interleaves=True)
    return found | {"experts": _experts(config, routing, found["num_layers"], num_dense=0)}


def deepseek_v3(config: ConfigFile) -> dict[str, Any]:
    config.refuse("topk_method", "noaux_tc")
    config.refuse("scoring_func", "sigmoid")
    routing = routing_of(
        config,
        "n_routed_experts",
        renormalises=config.flag("norm_topk_prob", True),
        scoring="sigmoid",
        scale=config.number("routed_scaling_factor", 2.5, above=0),
        group_score="sum_of_two",
        has_groups=True,
        default_groups=(8, 4),
    )
    found = _with_latents(config, interleaves=config.flag("rope_interleave", True))
    return found | {"experts": _experts(config, routing, found["num_layers"], num_dense=3)}


def _with_latents(config: ConfigFile, *, interleaves: bool) -> dict[str, Any]:
    """A token has one key, of a latent and a rotated part, for all heads."""
    config.refuse("mlp_bias", False)
    found = llama_like(config)
    if found["num_kv_heads"] != found["num_heads"]:
        raise config.wrong("num_key_value_heads", f"num_attention_heads, {found['num_heads']}: latents serve all heads")
    sizes = LatentConfig(
        rank=config.size("kv_lora_rank", 512),
        key_dim=config.size("qk_nope_head_dim", 128),
        rotary_dim=config.size("qk_rope_head_dim", 64),
        value_dim=config.size("v_head_dim", 128),
        query_rank=config.optional_size("q_lora_rank"),
        interleaves=interleaves,
    )
    width, rope = sizes.rank + sizes.rotary_dim, rope_config(config)
    return found | {
        "num_kv_heads": 1,
        "head_dim": width,
        "latent": sizes,
        "activation": config.activation("hidden_act", "silu"),
        "attention_bias": config.flag("attention_bias", False),
        "attention_scale": (sizes.key_dim + sizes.rotary_dim) ** -0.5 * _sharpening(rope) ** 2,
        "rope": replace(rope, partial_rotary_factor=sizes.rotary_dim / width),
        "extra": guessing_layers(config),
    }


def _sharpening(rope: RopeConfig) -> float:
    """Of scores, beside what YaRN does to the angles."""
    scaling = rope.scaling or {}
    factor, of_all = scaling.get("factor", 1.0), scaling.get("mscale_all_dim", 0.0)
    return 0.1 * of_all * log(factor) + 1.0 if factor > 1 else 1.0


def _experts(config: ConfigFile, routing: Routing, num_layers: int, *, num_dense: int) -> ExpertsConfig:
    """num_dense: of the first layers, if the file does not say it."""
    first = config.size("first_k_dense_replace", num_dense, smallest=0)
    step = config.size("moe_layer_freq", 1)
    inner = config.size("moe_intermediate_size")
    return ExpertsConfig(
        routing=routing,
        intermediate_size=inner,
        dense_layers=frozenset(i for i in range(num_layers) if i < first or i % step),
        shared_size=inner * config.size("n_shared_experts", 0, largest=MOST_EXPERTS, smallest=0),
        gate=gate(config),
    )
