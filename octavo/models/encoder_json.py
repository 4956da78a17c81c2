"""Hugging Face's config.json of encoders to Architecture."""

from __future__ import annotations

from typing import Any

from octavo.models.config_file import ConfigFile
from octavo.models.llama_json import MOST_LAYERS
from octavo.models.pooling import Pooling


def bert(config: ConfigFile) -> dict[str, Any]:
    config.refuse("position_embedding_type", "absolute")
    config.refuse("is_decoder", False)
    hidden_size, num_heads = config.size("hidden_size"), config.size("num_attention_heads")
    length = config.size("max_position_embeddings", 512)
    return {
        "vocab_size": config.size("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": config.size("num_hidden_layers", largest=MOST_LAYERS),
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": max(1, hidden_size // num_heads),
        "intermediate_size": config.size("intermediate_size"),
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


def roberta(config: ConfigFile) -> dict[str, Any]:
    """The first position has the row behind the padding token's."""
    offset = config.size("pad_token_id", 1, smallest=0) + 1
    found = bert(config)
    stated = found["max_position_embeddings"]
    if stated <= offset:
        raise config.wrong("max_position_embeddings", f"more than {offset}, the rows before the first position's")
    lens = dict.fromkeys(("max_position_embeddings", "num_position_embeddings"), stated - offset)
    return {**found, **lens, "extra": {**found["extra"], "position_offset": offset}}
