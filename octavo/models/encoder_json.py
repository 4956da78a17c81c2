"""Hugging Face's config.json of encoders to Architecture."""

from __future__ import annotations

from typing import Any

from octavo.models.config_file import ConfigFile
from octavo.models.llama_json import sizes, windows
from octavo.models.pooling import Pooling
from octavo.models.rope_json import rope_config


def bert(config: ConfigFile) -> dict[str, Any]:
    config.refuse("position_embedding_type", "absolute")
    config.refuse("is_decoder", False)
    length = config.size("max_position_embeddings", 512)
    return {
        **sizes(config),
        "max_position_embeddings": length,
        "num_position_embeddings": length,
        "rope": None,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_eps": config.number("layer_norm_eps", 1e-12, least=0),
        "activation": config.activation("hidden_act", "gelu"),
        "tie_word_embeddings": True,
        "is_causal": False,
        "pooling": Pooling(kind="CLS"),
        "extra": {"type_vocab_size": config.size("type_vocab_size", 2)},
    }


def mpnet(config: ConfigFile) -> dict[str, Any]:
    """Its tables of positions begin as RoBERTa's, always behind the second row."""
    config.refuse("pad_token_id", 1)
    found = roberta(config)
    buckets = config.size("relative_attention_num_buckets", 32, smallest=4, largest=1 << 12)
    if buckets % 4:
        raise config.wrong("relative_attention_num_buckets", "multiples of 4")
    return {**found, "extra": {"position_offset": found["extra"]["position_offset"], "num_buckets": buckets}}


def modernbert(config: ConfigFile) -> dict[str, Any]:
    every = config.size("global_attn_every_n_layers", 3)
    window = config.size("local_attention", 128) // 2 + 1  # to each side, the token itself included
    theta = config.number("global_rope_theta", 160_000.0, above=1)
    local_theta = config.optional_number("local_rope_theta", 10_000.0, above=1) or theta
    return {
        **sizes(config),
        "max_position_embeddings": config.size("max_position_embeddings", 8192),
        "rope": rope_config(config, theta, "full_attention"),
        "local_rope": rope_config(config, local_theta, "sliding_attention"),
        "windows": windows(
            ConfigFile(config.path, {**config.values, "sliding_window": window}, config.within),
            lambda layer: layer % every != 0,
        ),
        "attention_bias": config.flag("attention_bias", False),
        "mlp_bias": config.flag("mlp_bias", False),
        "norm_eps": config.number("norm_eps", 1e-5, least=0),
        "activation": config.activation("hidden_activation", "gelu"),
        "tie_word_embeddings": True,
        "is_causal": False,
        "pooling": Pooling(kind="CLS"),
        "extra": {
            "norm_bias": config.flag("norm_bias", False),
            "classifier_bias": config.flag("classifier_bias", False),
            "classifier_activation": config.activation("classifier_activation", "gelu"),
            "classifier_pooling": _classifier_pooling(config),
        },
    }


def _classifier_pooling(config: ConfigFile) -> Pooling:
    config.refuse("classifier_pooling", "cls", "mean")
    return Pooling(kind="MEAN" if config.text("classifier_pooling", "cls") == "mean" else "CLS")


def roberta(config: ConfigFile) -> dict[str, Any]:
    """The first position has the row behind the padding token's."""
    offset = config.size("pad_token_id", 1, smallest=0) + 1
    found = bert(config)
    stated = found["max_position_embeddings"]
    if stated <= offset:
        raise config.wrong("max_position_embeddings", f"more than {offset}, the rows before the first position's")
    lens = dict.fromkeys(("max_position_embeddings", "num_position_embeddings"), stated - offset)
    return {**found, **lens, "extra": {**found["extra"], "position_offset": offset}}
