"""config.json to Architecture: both spellings of everything, and refusals that name key and value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.mixture import Gate, Routing
from octavo.models.architecture import Architecture, ExpertsConfig, LatentConfig, RopeConfig
from octavo.models.config_file import ConfigFile, checked_defaults
from octavo.models.config_json import FAMILIES, architecture_from_config

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}
GPT2 = {"vocab_size": 100, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 128}
OPT = SIZES | {"ffn_dim": 96}
EXPERTS = {"num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
EXPERTS["n_routed_experts"] = 8


DEEPSEEK = SIZES | {"num_key_value_heads": 4, "n_group": 1}
OWN_SIZES = {"GPT2LMHeadModel": GPT2, "OPTForCausalLM": OPT}
OWN_SIZES |= dict.fromkeys(("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"), DEEPSEEK)


def read(name: str, **values: Any) -> Architecture:
    sizes = OWN_SIZES.get(name, SIZES)
    return architecture_from_config(Path("config.json"), {"architectures": [name], **sizes, **EXPERTS, **values})


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_read_for_every_family(name: str) -> None:
    architecture = read(name)
    assert architecture.family == FAMILIES[name][0]
    assert architecture.vocab_size == 100
    assert architecture.hidden_size == 64
    assert architecture.num_layers == 4
    assert architecture.num_heads == 4
    assert architecture.intermediate_size == (256 if name == "GPT2LMHeadModel" else 96)
    begins_later = architecture.family in ("roberta", "mpnet")  # two rows of the table are before the first position's
    length = 126 if begins_later else 128
    assert architecture.max_position_embeddings == length
    learned = ("gpt2", "opt", "bert", "roberta", "mpnet")
    assert architecture.num_position_embeddings == (length if architecture.family in learned else 0)
    embeds = architecture.pooling is not None
    classifies = architecture.classes is not None
    assert classifies == name.endswith("Classification")
    assert embeds == (
        classifies or name.endswith("ForMaskedLM") or (name.endswith("Model") and name != "GPT2LMHeadModel")
    )
    assert architecture.tie_word_embeddings == (embeds or name[:5] in ("Gemma", "GPT2L", "OPTFo"))


def test_an_old_llama_3_1() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    architecture = read(
        "LlamaForCausalLM", rope_theta=500_000, rope_scaling=scaling, eos_token_id=[7, 8], bos_token_id=1
    )
    assert architecture.rope == RopeConfig(theta=500_000.0, scaling=scaling)
    assert architecture.eos_token_ids == (7, 8)
    assert architecture.bos_token_id == 1


def test_the_newer_spelling_of_rope_means_the_same() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    old = read("LlamaForCausalLM", rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    new = read("LlamaForCausalLM", rope_parameters={**scaling, "rope_theta": 5e5})
    assert new.rope == RopeConfig(theta=5e5, scaling=scaling)
    assert old.rope is not None
    assert old.rope.theta == 5e5
    assert read("LlamaForCausalLM", rope_theta=5e5, rope_scaling=None).rope == RopeConfig(theta=5e5)
    assert read("LlamaForCausalLM", rope_parameters={"rope_type": "default", "rope_theta": 5e5}).rope == RopeConfig(
        theta=5e5
    )


def test_gemma_3_has_two_ropes_in_both_spellings() -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    old = read("Gemma3ForCausalLM", rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=linear, sliding_window=16)
    new = read(
        "Gemma3ForCausalLM",
        sliding_window=16,
        rope_parameters={
            "full_attention": {**linear, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    assert old == new
    assert old.rope == RopeConfig(theta=1e6, scaling=linear)
    assert old.local_rope == RopeConfig(theta=1e4)
    assert old.attention_scale == 256**-0.5
    assert old.head_dim == 256


def test_phi_3_keeps_its_original_length_outside_the_scaling() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2] * 8}
    scaling = {"type": "longrope", **factors}
    architecture = read("Phi3ForCausalLM", rope_scaling=scaling, original_max_position_embeddings=32)
    assert architecture.rope is not None
    expected = {"rope_type": "longrope", "original_max_position_embeddings": 32, **factors}
    assert architecture.rope.scaling == expected
    assert read("Phi3ForCausalLM", partial_rotary_factor=0.75).rope == RopeConfig(partial_rotary_factor=0.75)


@pytest.mark.parametrize(
    ("name", "values", "windows"),
    [
        ("LlamaForCausalLM", {}, ()),
        ("MistralForCausalLM", {"sliding_window": 16}, (16, 16, 16, 16)),
        ("MistralForCausalLM", {"sliding_window": None}, ()),
        ("Phi3ForCausalLM", {"sliding_window": 16}, (16, 16, 16, 16)),
        ("Qwen2ForCausalLM", {"sliding_window": 16, "use_sliding_window": False, "max_window_layers": 2}, ()),
        (
            "Qwen2ForCausalLM",
            {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 16),
        ),
        (
            "Qwen3ForCausalLM",
            {
                "sliding_window": 16,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            },
            (16, None, None, 16),
        ),
        ("Gemma2ForCausalLM", {"sliding_window": 16}, (16, None, 16, None)),
        ("Gemma3ForCausalLM", {"sliding_window": 16, "sliding_window_pattern": 3}, (16, 16, None, 16)),
        ("Gemma3ForCausalLM", {"sliding_window": 16, "_sliding_window_pattern": 6}, (16, 16, 16, 16)),
    ],
)
def test_windows(name: str, values: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert read(name, **values).windows == windows


def test_gemma_2_caps_unless_a_null_says_not_to() -> None:
    assert read("Gemma2ForCausalLM").attention_softcap == 50.0
    assert read("Gemma2ForCausalLM").logits_softcap == 30.0
    assert read("Gemma2ForCausalLM", attn_logit_softcapping=None).attention_softcap is None


def test_a_model_type_stands_in_for_a_missing_class() -> None:
    values = {"model_type": "gemma3_text", **SIZES}
    assert architecture_from_config(Path("config.json"), values).family == "gemma3"


GEMMA_THAT_SEES: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "eos_token_id": [1, 106],
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}


def test_the_text_part_of_gemma_3_leaves_out_what_is_as_in_its_class() -> None:
    """As the 4B model's file has it."""
    architecture = architecture_from_config(Path("config.json"), GEMMA_THAT_SEES)
    assert (architecture.family, architecture.vocab_size, architecture.num_layers) == ("gemma3", 262_208, 34)
    assert (architecture.num_heads, architecture.num_kv_heads, architecture.head_dim) == (8, 4, 256)
    assert architecture.max_position_embeddings == 131_072
    assert architecture.windows[4:7] == (1024, None, 1024)
    assert architecture.rope == RopeConfig(theta=1e6, scaling={"rope_type": "linear", "factor": 8.0})
    assert architecture.tie_word_embeddings
    assert architecture.eos_token_ids == (1, 106)
    of_text_alone = GEMMA_THAT_SEES | {"eos_token_id": None}
    of_text_alone["text_config"] = GEMMA_THAT_SEES["text_config"] | {"eos_token_id": 7, "tie_word_embeddings": False}
    architecture = architecture_from_config(Path("config.json"), of_text_alone)
    assert architecture.eos_token_ids == (7,)
    assert not architecture.tie_word_embeddings


SMALL: dict[str, Any] = {"model_type": "mistral", "head_dim": 32, "rope_theta": 1e9, "sliding_window": None}


def test_the_text_part_of_mistral_small_is_a_mistral() -> None:
    """Version 3.1 and later also take images."""
    method = {"quant_method": "fp8", "activation_scheme": "static"}
    values = {"architectures": ["Mistral3ForConditionalGeneration"], "quantization_config": method}
    architecture = architecture_from_config(Path("config.json"), values | {"text_config": SIZES | SMALL})
    plain = read("MistralForCausalLM", **SMALL, quantization_config=method)
    assert architecture == plain
    assert architecture.quantization is not None
    other = values | {"text_config": SIZES | {"model_type": "ministral3"}}
    with pytest.raises(UnsupportedModelError, match=r"text_config\.model_type is 'ministral3'; allowed: 'mistral'"):
        architecture_from_config(Path("config.json"), other)


def test_a_scaling_that_was_added_to_a_newer_file_counts() -> None:
    """As model cards say; rope_parameters alone would hide it."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    stated = {"rope_theta": 5e5, "rope_type": "default", "partial_rotary_factor": 0.5}
    found = read("Qwen3ForCausalLM", rope_parameters=stated, rope_scaling=yarn)
    assert found.rope == RopeConfig(theta=5e5, partial_rotary_factor=0.5, scaling=yarn)
    assert read("Qwen3ForCausalLM", rope_parameters=stated, rope_scaling=None).rope == RopeConfig(
        theta=5e5, partial_rotary_factor=0.5
    )
    assert read("Qwen3ForCausalLM", rope_scaling=yarn | {"rope_type": None, "type": "yarn"}).rope == RopeConfig(
        scaling=yarn
    )


def test_what_the_text_part_says_wrong_is_named_with_its_place() -> None:
    broken = GEMMA_THAT_SEES | {"text_config": GEMMA_THAT_SEES["text_config"] | {"hidden_size": "2560"}}
    with pytest.raises(ModelLoadError, match=r"config.json: text_config.hidden_size is '2560'; allowed: 1 to"):
        architecture_from_config(Path("config.json"), broken)


def test_end_tokens_beyond_the_vocabulary_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    architecture = read("LlamaForCausalLM", eos_token_id=[7, 100, 32000], bos_token_id=100)
    assert architecture.eos_token_ids == (7,)
    assert architecture.bos_token_id is None
    assert "config.json: eos_token_id names token 100, 32000, beyond the model's vocabulary of 100" in caplog.text
    generation = ConfigFile(Path("generation_config.json"), {"eos_token_id": 101})
    values = {"architectures": ["LlamaForCausalLM"], **SIZES, "eos_token_id": 7}
    assert architecture_from_config(Path("config.json"), values, generation).eos_token_ids == ()
    assert "generation_config.json: eos_token_id names token 101" in caplog.text


def test_whole_sampling_defaults_may_be_written_with_a_point() -> None:
    names = {"top_k": "top_k", "max_new_tokens": "max_tokens", "temperature": "temperature"}
    values = {"top_k": 20.0, "max_new_tokens": 2048.0, "temperature": 1.0}
    found = checked_defaults(Path("generation_config.json"), values, names)
    assert found == {"top_k": 20, "max_tokens": 2048, "temperature": 1.0}
    assert [type(each) for each in found.values()] == [int, int, float]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("RwkvForCausalLM", {}, r"architectures is \['RwkvForCausalLM'\]; Octavo knows LlamaForCausalLM, Mistral"),
    ("LlamaForCausalLM", {"hidden_act": "mish"}, "hidden_act is 'mish'; allowed: silu, swish, gelu"),
    ("LlamaForCausalLM", {"rope_scaling": {"type": "mrope"}}, "rope_scaling's rope_type is 'mrope'; Octavo knows"),
    ("LlamaForCausalLM", {"quantization_config": {"quant_method": "hqq"}}, "quantization_config asks for 'hqq'"),
    ("LlamaForCausalLM", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config.bits is None"),
    (
        "Gemma3ForConditionalGeneration",
        {"text_config": {"quantization_config": {"quant_method": "hqq"}}},
        "text_config.quantization_config asks for 'hqq'",
    ),
    ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True; allowed"),
    ("GPT2LMHeadModel", {"add_cross_attention": True}, "add_cross_attention is True; allowed: False"),
]


@pytest.mark.parametrize(("name", "values", "message"), REFUSED)
def test_what_is_not_supported_is_refused_by_key_and_value(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"config.json: {message}"):
        read(name, **values)


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": None}, "key 'hidden_size' is missing"),
    ({"hidden_size": 0}, "hidden_size is 0; allowed: 1 to"),
    ({"hidden_size": "64"}, "hidden_size is '64'"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; allowed: 1 to 4096"),
    ({"num_key_value_heads": 3}, "4 attention heads do not share 3 key/value heads evenly"),
    ({"head_dim": 15}, "heads have 15 dimensions; where they rotate, allowed are even numbers"),
    ({"partial_rotary_factor": 1.5}, "24 of a head's 16 dimensions would rotate"),
    ({"rope_theta": 0}, "rope_theta is 0; allowed: a number above 1 up to"),
    ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny'; allowed: a number"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; allowed: true and false"),
    ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'; allowed: a token id or a list of them"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; allowed: an object"),
]


@pytest.mark.parametrize(("values", "message"), BROKEN)
def test_what_makes_no_sense_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=f"config.json: {message}"):
        read("LlamaForCausalLM", **values)


def test_heads_must_fill_a_model_with_learned_positions() -> None:
    with pytest.raises(ModelLoadError, match="64 columns do not divide into 5 attention heads"):
        read("GPT2LMHeadModel", n_head=5)


def test_layer_types_must_name_every_layer() -> None:
    bad_layers = {"sliding_window": 16, "layer_types": ["full_attention"]}
    with pytest.raises(ModelLoadError, match="allowed: 4 times sliding_attention or full_attention"):
        read("MistralForCausalLM", **bad_layers)


def test_experts_of_each_family() -> None:
    mixtral = read("MixtralForCausalLM").experts
    assert mixtral is not None
    assert mixtral == ExpertsConfig(routing=Routing(num_experts=8, num_chosen=2), intermediate_size=96)
    shared = {"shared_expert_intermediate_size": 56, "mlp_only_layers": [0], "decoder_sparse_step": 2}
    qwen2 = read("Qwen2MoeForCausalLM", **shared).experts
    assert qwen2 == ExpertsConfig(
        routing=Routing(num_experts=8, num_chosen=2, renormalises=False),
        intermediate_size=40,
        dense_layers=frozenset({0, 2}),
        shared_size=56,
        has_shared_gate=True,
    )
    granite = read("GraniteMoeForCausalLM", shared_intermediate_size=24, logits_scaling=4, embedding_multiplier=12)
    assert granite.experts == replace(mixtral, shared_size=24)
    assert (granite.embedding_scale, granite.residual_scale, granite.logits_scale) == (12, 1, 0.25)
    gpt_oss = read("GptOssForCausalLM")
    assert gpt_oss.experts == replace(mixtral, gate=Gate("clamped", 1.702, 7.0))
    assert gpt_oss.windows == (128, None, 128, None)
    assert read("OlmoeForCausalLM").experts == replace(mixtral, routing=replace(mixtral.routing, renormalises=False))
    qwen3 = read("Qwen3MoeForCausalLM", norm_topk_prob=True, hidden_act="gelu").experts
    assert qwen3 == ExpertsConfig(routing=Routing(num_experts=8, num_chosen=2), intermediate_size=40, gate=Gate("gelu"))


@pytest.mark.parametrize(
    ("name", "key", "value", "allowed"),
    [
        ("Mixtral", "num_experts_per_tok", 9, "1 to 8"),
        ("Mixtral", "num_experts_per_tok", 0, "1 to 8"),
        ("Mixtral", "num_local_experts", -1, "1 to 4096"),
        ("Qwen3Moe", "num_experts_per_tok", "2", "1 to 8"),
        ("Qwen3Moe", "mlp_only_layers", [4], "a list of layers from 0 to 3"),
        ("Qwen2Moe", "decoder_sparse_step", 0, "1 to 2147483648"),
        ("Qwen3Moe", "moe_intermediate_size", 0, "1 to 2147483648"),
        ("Glm4Moe", "n_group", 3, "numbers that divide n_routed_experts, 8"),
        ("Glm4Moe", "n_group", 9, "1 to 8"),
        ("Glm4Moe", "topk_group", 2, "1 to 1"),
        ("Glm4Moe", "n_shared_experts", -1, "0 to 4096"),
        ("Glm4Moe", "routed_scaling_factor", 0, "a number above 0"),
        ("Qwen3Moe", "hidden_act", "tanh", "silu, swish"),
        ("DeepseekV2", "topk_method", "noaux_tc", "'greedy', 'group_limited_greedy'"),
        ("DeepseekV2", "scoring_func", "sigmoid", "'softmax'"),
        ("DeepseekV2", "norm_topk_prob", True, "False"),
        ("DeepseekV2", "mlp_bias", True, "False"),
        ("DeepseekV2", "moe_layer_freq", 0, "1 to 2147483648"),
        ("DeepseekV3", "topk_method", "greedy", "'noaux_tc'"),
        ("DeepseekV3", "n_group", 3, "numbers that divide n_routed_experts, 8"),
        ("DeepseekV3", "n_group", 8, "up to 4: a group's score is that of its two best experts"),
        ("DeepseekV3", "num_key_value_heads", 2, "num_attention_heads, 4"),
        ("DeepseekV3", "kv_lora_rank", 0, "1 to 2147483648"),
        ("DeepseekV3", "q_lora_rank", "none", "1 to 2147483648"),
        ("DeepseekV3", "qk_rope_head_dim", -8, "1 to 2147483648"),
        ("DeepseekV3", "rope_interleave", 1, "true and false"),
        ("DeepseekV3", "num_nextn_predict_layers", -1, "0 to 4096"),
        ("GptOss", "hidden_act", "gelu", "'silu', 'swish'"),
        ("GptOss", "swiglu_limit", -7, "a number from 1e-06"),
        ("GptOss", "num_local_experts", 0, "1 to 4096"),
        ("GptOss", "layer_types", ["full_attention"], "4 times"),
        ("Olmoe", "clip_qkv", 8.0, "none"),
        ("GraniteMoe", "num_experts_per_tok", 9, "1 to 8"),
        ("GraniteMoe", "logits_scaling", 0, "a number from 1e-06"),
    ],
)
def test_experts_that_cannot_be_are_refused_by_their_key(name: str, key: str, value: object, allowed: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"config.json: {key} is .*allowed: {allowed}"):
        read(f"{name}ForCausalLM", **{key: value})


def test_latents_as_they_are_published() -> None:
    """The numbers of DeepSeek V3's config.json, but for its sizes: one key of 576 numbers, and sharper scores."""
    rope = {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}
    rope["original_max_position_embeddings"] = 4096
    sizes = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    groups = {"n_routed_experts": 64, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "moe_layer_freq": 1}
    how = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5}
    rest = {"v_head_dim": 128, "n_shared_experts": 1, "num_nextn_predict_layers": 1, "rope_scaling": rope}
    a = read("DeepseekV3ForCausalLM", **sizes, **groups, **how, **rest)
    assert a.latent == LatentConfig(rank=512, key_dim=128, rotary_dim=64, value_dim=128, query_rank=1536)
    assert (a.num_kv_heads, a.head_dim) == (1, 576)
    assert a.attention_scale == pytest.approx(0.1352337788)
    assert a.rope is not None
    assert round(a.head_dim * a.rope.partial_rotary_factor) == 64
    assert a.experts is not None
    assert a.experts.routing == Routing(
        **{"num_experts": 64, "num_chosen": 2, "scoring": "sigmoid", "scale": 2.5},
        **{"num_groups": 8, "top_groups": 4, "group_score": "sum_of_two"},
    )
    assert a.experts.dense_layers == {0, 1, 2}
    assert a.experts.shared_size == 40


def test_every_second_layer_may_have_experts() -> None:
    experts = read("DeepseekV2ForCausalLM", first_k_dense_replace=1, moe_layer_freq=2, n_shared_experts=None).experts
    assert experts is not None
    assert experts.dense_layers == {0, 1, 3}
    assert experts.shared_size == 0
    assert experts.routing == Routing(num_experts=8, num_chosen=2, renormalises=False)
