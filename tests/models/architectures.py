"""One Architecture per family, as a checkpoint reader would build it; no two dimensions have the same size."""

from __future__ import annotations

from dataclasses import replace

from octavo.kernels.mixture import Gate, Routing
from octavo.models.architecture import Architecture, ExpertsConfig, LatentConfig, RopeConfig
from octavo.models.pooling import Pooling

NUM_LAYERS = 3

LLAMA = Architecture(
    family="llama",
    vocab_size=170,
    hidden_size=64,
    num_layers=NUM_LAYERS,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    max_position_embeddings=128,
)
LEARNED_POSITIONS = replace(
    LLAMA,
    num_heads=4,
    num_kv_heads=4,
    rope=None,
    num_position_embeddings=128,
    tie_word_embeddings=True,
    attention_bias=True,
    mlp_bias=True,
)
GEMMA = replace(
    LLAMA,
    activation="gelu_tanh",
    tie_word_embeddings=True,
    windows=(8, None, 8),
    rope=RopeConfig(theta=1e6),
    attention_scale=0.2,
)
GRANITE = replace(LLAMA, embedding_scale=12.0, residual_scale=0.2, logits_scale=0.1, attention_scale=0.02)
EXPERTS = ExpertsConfig(routing=Routing(num_experts=5, num_chosen=2), intermediate_size=32)
CLAMPED = replace(EXPERTS, gate=Gate("clamped"))
#: the middle layer has one MLP, and the others an expert for every token
SHARED_EXPERT = replace(EXPERTS, dense_layers=frozenset({1}), shared_size=160, has_shared_gate=True)

#: one key of a latent of 224 and a rotated part of 8
DEEPSEEK = replace(
    LLAMA,
    num_kv_heads=1,
    head_dim=232,
    rope=RopeConfig(partial_rotary_factor=8 / 232),
    latent=LatentConfig(rank=224, key_dim=12, rotary_dim=8, value_dim=32, query_rank=128),
    experts=replace(SHARED_EXPERT, has_shared_gate=False),
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": LLAMA,
    "mistral": replace(LLAMA, family="mistral", windows=(8,) * NUM_LAYERS),
    "qwen2": replace(LLAMA, family="qwen2"),
    "qwen3": replace(LLAMA, family="qwen3", tie_word_embeddings=True),
    "phi3": replace(LLAMA, family="phi3", rope=RopeConfig(partial_rotary_factor=0.5)),
    "gemma2": replace(GEMMA, family="gemma2", attention_softcap=50.0, logits_softcap=30.0),
    "gemma3": replace(GEMMA, family="gemma3", local_rope=RopeConfig(theta=1e4)),
    "mixtral": replace(LLAMA, family="mixtral", experts=EXPERTS),
    "qwen2_moe": replace(LLAMA, family="qwen2_moe", experts=SHARED_EXPERT, extra={"qkv_bias": True}),
    "qwen3_moe": replace(LLAMA, family="qwen3_moe", experts=EXPERTS),
    "glm4_moe": replace(
        LLAMA,
        family="glm4_moe",
        experts=replace(SHARED_EXPERT, has_shared_gate=False),
        extra={"qkv_bias": True, "qk_norm": True},
    ),
    "deepseek_v2": replace(DEEPSEEK, family="deepseek_v2", attention_bias=True),
    "deepseek_v3": replace(
        DEEPSEEK, family="deepseek_v3", latent=LatentConfig(rank=224, key_dim=12, rotary_dim=8, value_dim=32)
    ),
    "gpt_oss": replace(LLAMA, family="gpt_oss", attention_bias=True, windows=(8, None, 8), experts=CLAMPED),
    "olmoe": replace(LLAMA, family="olmoe", experts=EXPERTS),
    "granitemoe": replace(GRANITE, family="granitemoe", experts=replace(EXPERTS, shared_size=160)),
    "granite": replace(GRANITE, family="granite"),
    "olmo2": replace(LLAMA, family="olmo2"),
    "gpt2": replace(LEARNED_POSITIONS, family="gpt2", activation="gelu_tanh"),
    "opt": replace(LEARNED_POSITIONS, family="opt", activation="relu"),
}
ENCODERS: dict[str, Architecture] = {
    "bert": replace(
        LEARNED_POSITIONS,
        family="bert",
        activation="gelu",
        is_causal=False,
        pooling=Pooling(kind="CLS"),
        extra={"type_vocab_size": 2},
    ),
    "modernbert": replace(
        LEARNED_POSITIONS,
        family="modernbert",
        num_position_embeddings=0,
        attention_bias=False,
        mlp_bias=False,
        activation="gelu",
        rope=RopeConfig(),
        windows=(None, 8, 8),
        local_rope=RopeConfig(theta=5e3),
        is_causal=False,
        pooling=Pooling(kind="CLS"),
        extra={"norm_bias": False},
    ),
}
ENCODERS["roberta"] = replace(ENCODERS["bert"], family="roberta", extra={"type_vocab_size": 1, "position_offset": 2})
ENCODERS["mpnet"] = replace(ENCODERS["bert"], family="mpnet", extra={"num_buckets": 32, "position_offset": 2})
SLOTS = [(0, 0), (1, 0), (0, 1)]
