"""config.json of families with experts: how many, how the router chooses, and which layers have them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.kernels.mixture import Gate, GroupScore, Routing, Scoring
from octavo.models.architecture import ExpertsConfig
from octavo.models.config_file import ConfigFile
from octavo.models.llama_json import FACTORS, MOST_LAYERS, granite, llama_like, mistral, olmo2, qwen, windows
from octavo.models.rope_json import rope_config

MOST_EXPERTS = 1 << 12
#: of gpt-oss's gate; published files state only the limit
_SWIGLU = {"alpha": 1.702, "limit": 7.0}


def mixtral(config: ConfigFile) -> dict[str, Any]:
    found = mistral(config)
    routing = routing_of(config, "num_local_experts", renormalises=True)
    return found | {"experts": _of_intermediate_size(config, found, routing)}


def qwen2_moe(config: ConfigFile) -> dict[str, Any]:
    return _qwen_moe(config, shared_size=config.size("shared_expert_intermediate_size", 5632)) | {
        "extra": {"qkv_bias": config.flag("qkv_bias", True)}
    }


def qwen3_moe(config: ConfigFile) -> dict[str, Any]:
    return _qwen_moe(config, shared_size=0)


def _qwen_moe(config: ConfigFile, *, shared_size: int) -> dict[str, Any]:
    step = config.size("decoder_sparse_step", 1)
    num_layers = config.size("num_hidden_layers", largest=MOST_LAYERS)
    named = _layers(config, "mlp_only_layers", num_layers)
    name = "num_experts" if config.has("num_experts") else "num_local_experts"
    return qwen(config) | {
        "experts": ExpertsConfig(
            routing=routing_of(config, name, renormalises=config.flag("norm_topk_prob", False)),
            intermediate_size=config.size("moe_intermediate_size"),
            dense_layers=frozenset(i for i in range(num_layers) if i in named or (i + 1) % step != 0),
            shared_size=shared_size,
            has_shared_gate=shared_size > 0,
            gate=gate(config),
        )
    }


def olmoe(config: ConfigFile) -> dict[str, Any]:
    config.refuse("clip_qkv")
    found = olmo2(config)
    routing = routing_of(config, "num_experts", renormalises=config.flag("norm_topk_prob", False))
    return found | {"experts": _of_intermediate_size(config, found, routing)}


def granitemoe(config: ConfigFile) -> dict[str, Any]:
    """The softmax of the chosen logits. Some add an expert for every token."""
    found = granite(config)
    shared = config.size("shared_intermediate_size", 0, smallest=0)
    experts = _of_intermediate_size(config, found, routing_of(config, "num_local_experts", renormalises=True))
    return found | {"experts": replace(experts, shared_size=shared)}


def gpt_oss(config: ConfigFile) -> dict[str, Any]:
    """Every other layer has a window, the first one included. The softmax of the chosen logits."""
    config = ConfigFile(config.path, {"sliding_window": 128, **config.values}, config.within)
    found = llama_like(config, default_eps=1e-5)
    config.refuse("hidden_act", "silu", "swish")
    clamped = Gate("clamped", *(config.number(f"swiglu_{key}", default, **FACTORS) for key, default in _SWIGLU.items()))
    routing = routing_of(config, "num_local_experts", renormalises=True)
    return found | {
        "attention_bias": config.flag("attention_bias", True),
        "rope": rope_config(config, default_theta=150_000.0),
        "windows": windows(config, lambda layer: layer % 2 == 0),
        "experts": ExpertsConfig(routing=routing, intermediate_size=found["intermediate_size"], gate=clamped),
    }


def _of_intermediate_size(config: ConfigFile, found: dict[str, Any], routing: Routing) -> ExpertsConfig:
    return ExpertsConfig(routing=routing, intermediate_size=found["intermediate_size"], gate=gate(config))


def glm4_moe(config: ConfigFile) -> dict[str, Any]:
    """The first layers have one MLP."""
    found = llama_like(config, default_eps=1e-5)
    num_dense, inner = config.size("first_k_dense_replace", 1, smallest=0), config.size("moe_intermediate_size")
    routing = routing_of(
        config,
        "n_routed_experts",
        renormalises=config.flag("norm_topk_prob", True),
        scoring="sigmoid",
        scale=config.number("routed_scaling_factor", 1.0, above=0),
        group_score="sum_of_two",
        has_groups=True,
    )
    return found | {
        "activation": config.activation("hidden_act", "silu"),
        "rope": rope_config(config, default_rotary_factor=0.5),
        "experts": ExpertsConfig(
            routing=routing,
            intermediate_size=inner,
            dense_layers=frozenset(range(min(num_dense, found["num_layers"]))),
            shared_size=inner * config.size("n_shared_experts", 1, largest=MOST_EXPERTS, smallest=0),
            gate=gate(config),
        ),
        "extra": {
            "qkv_bias": config.flag("attention_bias", False),
            "qk_norm": config.flag("use_qk_norm", False),
            **guessing_layers(config),
        },
    }


def guessing_layers(config: ConfigFile) -> dict[str, int]:
    """How many layers, after the model's own, guess further tokens. They are not used."""
    return {"guessing_layers": config.size("num_nextn_predict_layers", 0, largest=MOST_LAYERS, smallest=0)}


def routing_of(
    config: ConfigFile,
    num_experts: str,
    *,
    renormalises: bool,
    scoring: Scoring = "softmax",
    scale: float = 1.0,
    group_score: GroupScore = "largest",
    has_groups: bool = False,
    default_groups: tuple[int, int] = (1, 1),
) -> Routing:
    """num_experts: the key that says how many there are. has_groups: n_group and topk_group limit the choice, and by
    default are default_groups."""
    count = config.size(num_experts, largest=MOST_EXPERTS)
    groups = config.size("n_group", default_groups[0], largest=count) if has_groups else 1
    if count % groups:
        raise config.wrong("n_group", f"numbers that divide {num_experts}, {count}")
    top_groups = config.size("topk_group", min(groups, default_groups[1]), largest=groups) if has_groups else 1
    if group_score == "sum_of_two" and top_groups < groups and count // groups < 2:
        raise config.wrong("n_group", f"up to {count // 2}: a group's score is that of its two best experts")
    return Routing(
        num_experts=count,
        num_chosen=config.size("num_experts_per_tok", largest=count // groups * top_groups),
        scoring=scoring,
        renormalises=renormalises,
        scale=scale,
        num_groups=groups,
        top_groups=top_groups,
        group_score=group_score,
    )


def gate(config: ConfigFile) -> Gate:
    return Gate(config.activation("hidden_act", "silu"))


def _layers(config: ConfigFile, key: str, num_layers: int) -> frozenset[int]:
    """A list of layers."""
    found = config.items(key)
    if not all(type(layer) is int and 0 <= layer < num_layers for layer in found):
        raise config.wrong(key, f"a list of layers from 0 to {num_layers - 1}")
    return frozenset(found)
