"""Hugging Face's config.json to Architecture.

Each family has one function that reads its own keys; keys that all families share are read once. A key that would
change the model's computation and is not implemented is an error that names it; keys that only matter in training are
ignored. Rotary settings may be spelled rope_theta and rope_scaling, or rope_parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.errors import UnsupportedModelError
from octavo.models.architecture import Architecture, checked, known_tokens
from octavo.models.classes_json import classifies
from octavo.models.config_file import ConfigFile
from octavo.models.deepseek_json import deepseek_v2, deepseek_v3
from octavo.models.encoder_json import bert, modernbert, mpnet, roberta
from octavo.models.llama_json import MOST_LAYERS, granite, llama, llama_like, mistral, olmo2, qwen, windows
from octavo.models.mixture_json import glm4_moe, gpt_oss, granitemoe, mixtral, olmoe, qwen2_moe, qwen3_moe
from octavo.models.pooling import Pooling
from octavo.models.quantization_json import quantization_beside, stated_quantization
from octavo.models.rope_json import local_rope_config, rope_config
from octavo.shown import shown


def architecture_from_config(
    path: Path, values: dict[str, Any], generation: ConfigFile | None = None, beside: ConfigFile | None = None
) -> Architecture:
    """values: the file's content. generation: generation_config.json, whose token ids take precedence. beside: the file
    of a folder that has its quantization_config in one of its own."""
    config = ConfigFile(path, values)
    name, read = _family(config)
    found: dict[str, Any] = {"quantization": stated_quantization(config, name), **read(config)}
    if found["quantization"] is None and beside is not None:
        found["quantization"] = quantization_beside(beside, name)
    return checked(path, Architecture(family=name, **_ends(config, generation, found["vocab_size"]), **found))


def _family(config: ConfigFile) -> FamilyReader:
    """By the first known class, or by model_type if the file names no class."""
    classes = config.items("architectures")
    known = [FAMILIES[name] for name in classes if isinstance(name, str) and name in FAMILIES]
    found = f"architectures is {shown(classes)}"
    if not classes:
        model_type = config.values.get("model_type")
        known = [MODEL_TYPES[model_type]] if isinstance(model_type, str) and model_type in MODEL_TYPES else []
        found = f"model_type is {shown(model_type)}"
    if not known:
        raise UnsupportedModelError(f"{config.path}: {found}; Octavo knows {', '.join(FAMILIES)}")
    return known[0]


def _ends(config: ConfigFile, generation: ConfigFile | None, vocab_size: int) -> dict[str, Any]:
    """A multimodal model may name its tokens in the configuration of its text part."""
    places = [config, *([config.inside("text_config")] if config.has("text_config") else [])]
    if generation is not None:
        places.insert(0, generation)

    def ids(key: str) -> tuple[int, ...]:
        place = next((place for place in places if place.has(key)), config)
        return known_tokens(place.token_ids(key), vocab_size, f"{place.path}: {place.within}{key}")

    bos = ids("bos_token_id")
    return {"bos_token_id": bos[0] if bos else None, "eos_token_ids": ids("eos_token_id")}


def _phi3(config: ConfigFile) -> dict[str, Any]:
    config.refuse("attention_bias", False)
    return llama_like(config, default_eps=1e-5) | {
        "activation": config.activation("hidden_act", "silu"),
        "rope": rope_config(config),
        "windows": windows(config, lambda layer: True),
    }


def _gemma(config: ConfigFile) -> dict[str, Any]:
    return llama_like(config, ties_by_default=True) | {
        "head_dim": config.size("head_dim", 256),
        "activation": config.activation("hidden_activation", "gelu_pytorch_tanh"),
        "attention_bias": config.flag("attention_bias", False),
        "attention_scale": config.number("query_pre_attn_scalar", 256, above=0) ** -0.5,
    }


def _gemma2(config: ConfigFile) -> dict[str, Any]:
    return _gemma(config) | {
        "rope": rope_config(config),
        "windows": windows(config, lambda layer: layer % 2 == 0),
        "attention_softcap": config.optional_number("attn_logit_softcapping", 50.0, above=0),
        "logits_softcap": config.optional_number("final_logit_softcapping", 30.0, above=0),
    }


def _gemma3(config: ConfigFile) -> dict[str, Any]:
    """A model that also takes images has its text part in a nested object, which omits the class's defaults."""
    quantization = stated_quantization(config, "gemma3")
    if config.has("text_config"):
        part = config.inside("text_config")
        ties = {key: config.values[key] for key in ("tie_word_embeddings",) if config.has(key)}
        config = ConfigFile(config.path, {**_GEMMA3_TEXT, **ties, **part.values}, part.within)
        quantization = stated_quantization(config, "gemma3") or quantization
    config.refuse("use_bidirectional_attention", False)
    pattern = config.size("sliding_window_pattern", 6)
    return _gemma(config) | {
        "quantization": quantization,
        "rope": rope_config(config, default_theta=1_000_000.0, layer_type="full_attention"),
        "local_rope": local_rope_config(config),
        "windows": windows(config, lambda layer: (layer + 1) % pattern != 0),
        "attention_softcap": config.optional_number("attn_logit_softcapping", above=0),
        "logits_softcap": config.optional_number("final_logit_softcapping", above=0),
    }


#: defaults of Gemma 3's text part: published configurations omit many of them
_GEMMA3_TEXT = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}


def _mistral3(config: ConfigFile) -> dict[str, Any]:
    """Mistral Small 3.1 and later, which also take images: the text part is a Mistral in a nested object."""
    if not config.has("text_config"):
        return mistral(config)
    part, quantization = config.inside("text_config"), stated_quantization(config, "mistral")
    part.refuse("model_type", "mistral")
    part = ConfigFile(part.path, {"num_key_value_heads": 8, **part.values}, part.within)
    return mistral(part) | {"quantization": stated_quantization(part, "mistral") or quantization}


def _gpt2(config: ConfigFile) -> dict[str, Any]:
    config.refuse("add_cross_attention", False)
    config.refuse("scale_attn_weights", True)
    config.refuse("scale_attn_by_inverse_layer_idx", False)
    hidden_size, num_heads, length = config.size("n_embd"), config.size("n_head"), config.size("n_positions", 1024)
    return {
        "vocab_size": config.size("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": config.size("n_layer", largest=MOST_LAYERS),
        "intermediate_size": config.size("n_inner", 4 * hidden_size),
        "norm_eps": config.number("layer_norm_epsilon", 1e-5, least=0),
        "activation": config.activation("activation_function", "gelu_new"),
        "tie_word_embeddings": config.flag("tie_word_embeddings", True),
    } | _learned_positions(hidden_size, num_heads, length)


def _opt(config: ConfigFile) -> dict[str, Any]:
    hidden_size, num_heads = config.size("hidden_size"), config.size("num_attention_heads")
    has_biases, norms_before = config.flag("enable_bias", True), config.flag("do_layer_norm_before", True)
    length = config.size("max_position_embeddings")
    return _learned_positions(hidden_size, num_heads, length) | {
        "vocab_size": config.size("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": config.size("num_hidden_layers", largest=MOST_LAYERS),
        "intermediate_size": config.size("ffn_dim"),
        "activation": config.activation("activation_function", "relu"),
        "tie_word_embeddings": config.flag("tie_word_embeddings", True),
        "attention_bias": has_biases,
        "mlp_bias": has_biases,
        "extra": {
            "do_layer_norm_before": norms_before,
            "has_final_norm": norms_before and not config.flag("_remove_final_layer_norm", False),
            "layer_norm_elementwise_affine": config.flag("layer_norm_elementwise_affine", True),
            "word_embed_proj_dim": config.size("word_embed_proj_dim", hidden_size),
        },
    }


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


def _embeds(read: Callable[[ConfigFile], dict[str, Any]]) -> Callable[[ConfigFile], dict[str, Any]]:
    """A decoder that was saved without its LM head."""
    return lambda config: read(config) | {"tie_word_embeddings": True, "pooling": Pooling(kind="LAST")}


FamilyReader = tuple[str, Callable[[ConfigFile], dict[str, Any]]]
FAMILIES: dict[str, FamilyReader] = {
    "LlamaForCausalLM": ("llama", llama),
    "MistralForCausalLM": ("mistral", mistral),
    "Qwen2ForCausalLM": ("qwen2", qwen),
    "Qwen3ForCausalLM": ("qwen3", qwen),
    "MixtralForCausalLM": ("mixtral", mixtral),
    "Qwen2MoeForCausalLM": ("qwen2_moe", qwen2_moe),
    "Qwen3MoeForCausalLM": ("qwen3_moe", qwen3_moe),
    "Glm4MoeForCausalLM": ("glm4_moe", glm4_moe),
    "DeepseekV2ForCausalLM": ("deepseek_v2", deepseek_v2),
    "DeepseekV3ForCausalLM": ("deepseek_v3", deepseek_v3),
    "GptOssForCausalLM": ("gpt_oss", gpt_oss),
    "OlmoeForCausalLM": ("olmoe", olmoe),
    "GraniteMoeForCausalLM": ("granitemoe", granitemoe),
    "GraniteMoeSharedForCausalLM": ("granitemoe", granitemoe),
    "GraniteForCausalLM": ("granite", granite),
    "Olmo2ForCausalLM": ("olmo2", olmo2),
    "Gemma2ForCausalLM": ("gemma2", _gemma2),
    "Gemma3ForCausalLM": ("gemma3", _gemma3),
    "Gemma3ForConditionalGeneration": ("gemma3", _gemma3),
    "Mistral3ForConditionalGeneration": ("mistral", _mistral3),
    "Phi3ForCausalLM": ("phi3", _phi3),
    "GPT2LMHeadModel": ("gpt2", _gpt2),
    "OPTForCausalLM": ("opt", _opt),
}
#: for a config.json that names no class
MODEL_TYPES: dict[str, FamilyReader] = {name: (name, read) for name, read in FAMILIES.values()}
MODEL_TYPES |= {"mistral": FAMILIES["MistralForCausalLM"], "mistral3": FAMILIES["Mistral3ForConditionalGeneration"]}
MODEL_TYPES |= {"gemma3_text": MODEL_TYPES["gemma3"], "granitemoeshared": MODEL_TYPES["granitemoe"]}
MODEL_TYPES["kimi_k2"] = MODEL_TYPES["deepseek_v3"]
#: models that embed texts
FAMILIES |= {
    **dict.fromkeys(("BertModel", "BertForMaskedLM"), ("bert", bert)),
    **dict.fromkeys(("RobertaModel", "RobertaForMaskedLM", "CamembertModel"), ("roberta", roberta)),
    **dict.fromkeys(("XLMRobertaModel", "XLMRobertaForMaskedLM"), ("roberta", roberta)),
    **dict.fromkeys(("MPNetModel", "MPNetForMaskedLM"), ("mpnet", mpnet)),
    **dict.fromkeys(("ModernBertModel", "ModernBertForMaskedLM"), ("modernbert", modernbert)),
    "LlamaModel": ("llama", _embeds(llama)),
    "MistralModel": ("mistral", _embeds(mistral)),
    "Qwen2Model": ("qwen2", _embeds(qwen)),
    "Qwen3Model": ("qwen3", _embeds(qwen)),
    "Gemma2Model": ("gemma2", _embeds(_gemma2)),
}
MODEL_TYPES |= {"bert": FAMILIES["BertModel"], "mpnet": FAMILIES["MPNetModel"]}
MODEL_TYPES["modernbert"] = FAMILIES["ModernBertModel"]
MODEL_TYPES |= dict.fromkeys(("roberta", "xlm-roberta", "camembert"), FAMILIES["RobertaModel"])
#: models with a head for classes: of texts, and of tokens
_CLASSIFY: dict[str, FamilyReader] = {
    "Bert": ("bert", bert),
    "Roberta": ("roberta", roberta),
    "XLMRoberta": ("roberta", roberta),
    "Camembert": ("roberta", roberta),
    "MPNet": ("mpnet", mpnet),
    "ModernBert": ("modernbert", modernbert),
    "Llama": ("llama", llama),
    "Mistral": ("mistral", mistral),
    "Qwen2": ("qwen2", qwen),
    "Qwen3": ("qwen3", qwen),
}
for _name, (_family_name, _read) in _CLASSIFY.items():
    FAMILIES[f"{_name}ForSequenceClassification"] = _family_name, classifies(_read)
    FAMILIES[f"{_name}ForTokenClassification"] = _family_name, classifies(_read, of_tokens=True)
