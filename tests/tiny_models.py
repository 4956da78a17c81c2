"""Tiny random models as Hugging Face folders, one for each feature of the model families.

transformers builds them and is the oracle. They are small, but their windows, head groups and rope settings matter at
test lengths. Weights have a large variance, so that greedy choices are clear. Only tests import this: transformers is
slow to import.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import tokenizers
import torch
import transformers

SIZES = {
    "vocab_size": 160,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = SIZES | {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "sliding_window": 10,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 24,
}
GPT2 = {
    "vocab_size": 160,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {
    "vocab_size": 160,
    "hidden_size": 48,
    "word_embed_proj_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 80,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GLM = {
    "head_dim": 16,
    "attention_bias": True,
    "use_qk_norm": True,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
}
#: a latent of 24 and a rotated key of 8 for 6 heads
DEEPSEEK = SIZES | {
    "num_key_value_heads": 6,
    "num_hidden_layers": 2,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
}
DEEPSEEK_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "mscale": 0.8,
    "mscale_all_dim": 1.3,
    "original_max_position_embeddings": 64,
}
GPT_OSS = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 12,
    "swiglu_limit": 1.5,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "truncate": False,
    },
}
GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.5,
    "tie_word_embeddings": True,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
    "original_max_position_embeddings": 16,
}

#: name -> transformers' config class and its arguments
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES),
    "llama-tied-bias": (
        "LlamaConfig",
        SIZES | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6},
    ),
    "llama-rope-llama3": ("LlamaConfig", SIZES | {"rope_parameters": LLAMA3_ROPE}),
    "llama-rope-yarn": ("LlamaConfig", SIZES | {"rope_parameters": YARN_ROPE}),
    "mistral": ("MistralConfig", SIZES | {"sliding_window": 12, "head_dim": 16}),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", SIZES | {"head_dim": 16, "tie_word_embeddings": True}),
    "phi3": ("Phi3Config", SIZES | {"sliding_window": 14, "partial_rotary_factor": 0.5}),
    "phi3-longrope": (
        "Phi3Config",
        SIZES
        | {
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "original_max_position_embeddings": 16,
            "rope_parameters": LONG_ROPE,
        },
    ),
    "gemma2": ("Gemma2Config", GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3TextConfig", GEMMA),
    "mixtral": ("MixtralConfig", SIZES | {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 12}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        SIZES | EXPERTS | {"shared_expert_intermediate_size": 40, "mlp_only_layers": [1], "norm_topk_prob": False},
    ),
    "qwen3-moe": ("Qwen3MoeConfig", SIZES | EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "glm4-moe": ("Glm4MoeConfig", SIZES | GLM),
    "deepseek-v2": (
        "DeepseekV2Config",
        DEEPSEEK | {"q_lora_rank": None, "topk_method": "group_limited_greedy", "rope_parameters": DEEPSEEK_ROPE},
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        DEEPSEEK | {"q_lora_rank": 20, "attention_bias": True, "num_nextn_predict_layers": 0},
    ),
    "olmoe": ("OlmoeConfig", SIZES | {"num_experts": 6, "num_experts_per_tok": 2}),
    "gpt-oss": ("GptOssConfig", SIZES | GPT_OSS),
    "granite-moe": (
        "GraniteMoeSharedConfig",
        SIZES | GRANITE | {"num_local_experts": 5, "num_experts_per_tok": 2, "shared_intermediate_size": 40},
    ),
    "granite": ("GraniteConfig", SIZES | GRANITE),
    "olmo2": ("Olmo2Config", SIZES),
    "gpt2": ("GPT2Config", GPT2),
    "opt": ("OPTConfig", OPT),
    "opt-normed-after": ("OPTConfig", OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "opt-galactica": (
        "OPTConfig",
        OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    ),
    "opt-no-final-norm": ("OPTConfig", OPT | {"_remove_final_layer_norm": True}),
}
#: those whose attention is another family's: one setting of an engine is enough for them
ONE_SETTING = {name for name, (_, arguments) in TINY.items() if "num_experts_per_tok" in arguments}
ONE_SETTING |= {"granite", "olmo2"}


def make_tiny_model(
    name: str, folder: Path, *, seed: int = 0, dtype: str = "float32", std: float = 0.3, **changes: Any
) -> Path:
    """Write config.json and model.safetensors for TINY[name]; returns the folder. changes: of its arguments."""
    torch.manual_seed(seed)
    config_class, arguments = TINY[name]
    config = getattr(transformers, config_class)(**arguments | changes)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases: near their initial values
                parameter += 0.2 * torch.randn_like(parameter)
            else:
                parameter.normal_(std=std)
        for buffer in (buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")):
            buffer += 0.2 + 0.1 * torch.randn_like(buffer)
        # Undo the sqrt(hidden) scale: a token whose embedding dominates the stream would predict itself forever.
        if "Gemma" in config_class:
            model.get_input_embeddings().weight *= config.hidden_size**-0.5
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def with_tokenizer(folder: Path, words: Sequence[str]) -> Path:
    """The same folder, in which each of these words is a token."""
    numbers = {word: at for at, word in enumerate(["<unk>", *dict.fromkeys(words)])}
    encoder = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<unk>"))
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    encoder.save(str(folder / "tokenizer.json"))
    return folder
