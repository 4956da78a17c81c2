"""A model's context length: for each form of rope scaling as in vLLM, from both kinds of files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ConfigError
from octavo.llm import LLM
from octavo.models.architecture import Architecture
from octavo.models.config_json import architecture_from_config
from octavo.models.context_len import allowed_model_len, context_len
from octavo.models.loader import open_gguf
from tests.conftest import TinyFolder
from tests.models.architectures import ARCHITECTURES
from tests.models.gguf_files import TINY_LLAMA, tiny_llama_tensors, write_gguf
from tests.models.test_config_json import read

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 32}

#: scaling -> the context of a model that states 128 positions
FORMS: dict[str, tuple[dict[str, Any], int]] = {
    "none": ({}, 128),
    "default": ({"rope_type": "default"}, 128),
    "yarn as Qwen's cards have it": (YARN, 400),
    "yarn, the original length not stated": ({"type": "yarn", "factor": 4.0}, 512),
    "yarn, the factor not stated": ({"type": "yarn", "original_max_position_embeddings": 32}, 128),
    "yarn that was counted in": ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
    "linear": ({"type": "linear", "factor": 2.5}, 320),
    "linear beside its original length": ({"type": "linear", "factor": 4, "original_max_position_embeddings": 32}, 128),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, 256),
    "llama3": ({"rope_type": "llama3", **LLAMA3}, 128),
    "longrope": ({"type": "longrope", "factor": 4.0, **LONGROPE}, 128),
    "su": ({"type": "su", **LONGROPE}, 128),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_each_form_of_scaling_in_both_spellings(form: str, key: str) -> None:
    scaling, expected = FORMS[form]
    if key == "rope_parameters" and "type" in scaling:
        scaling = {"rope_type": scaling["type"], **{name: scaling[name] for name in scaling if name != "type"}}
    assert context_len(read("Qwen2ForCausalLM", **{key: scaling})) == expected


def test_gemma_3_counts_its_scaling_in() -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    assert context_len(read("Gemma3ForCausalLM", rope_scaling=linear)) == 128
    assert context_len(read("LlamaForCausalLM", rope_scaling=linear)) == 1024


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, 128),
        ({"type": "none"}, 128),
        ({"type": "linear", "factor": 4.0}, 512),
        ({"type": "linear", "factor": 4.0, "original_context_length": 32}, 128),
        ({"type": "yarn", "factor": 4.0, "original_context_length": 100}, 400),
        ({"type": "yarn", "factor": 4.0}, 512),
    ],
)
def test_gguf_keys(keys: dict[str, Any], expected: int, tmp_path: Path) -> None:
    metadata = TINY_LLAMA | {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
    path = write_gguf(tmp_path / "tiny.gguf", "llama", metadata, tiny_llama_tensors())
    assert context_len(open_gguf(path, "tiny").architecture) == expected


def yarn_model() -> Architecture:
    return read("Qwen2ForCausalLM", rope_scaling=YARN)


def test_what_is_asked_for_is_given_up_to_the_derived_length() -> None:
    assert allowed_model_len(yarn_model(), None) == 400
    assert allowed_model_len(yarn_model(), 399) == 399
    with pytest.raises(ConfigError, match=r"401, allowed is up to 400, .*max_position_embeddings is 128, its rope sc"):
        allowed_model_len(yarn_model(), 401)


def test_who_insists_gets_more_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OCTAVO_ALLOW_LONG_MAX_MODEL_LEN", "1")
    assert allowed_model_len(yarn_model(), 401) == 401
    assert "max_model_len is 401, beyond the 400 positions" in caplog.text
    learned = replace(ARCHITECTURES["gpt2"], max_position_embeddings=128)
    with pytest.raises(ConfigError, match=r"allowed is up to 128, [^;]*$"):  # no table has such positions
        allowed_model_len(learned, 129)


def test_a_lengthened_model_answers_beyond_its_stated_length(tiny_folder: TinyFolder, tmp_path: Path) -> None:
    source = tiny_folder("llama")
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    config = (source / "config.json").read_text().replace('"rope_parameters": {', '"rope_parameters": {"factor": 4.0,')
    config = config.replace('"rope_type": "default"', '"rope_type": "yarn"')
    (tmp_path / "config.json").write_text(
        config.replace('"max_position_embeddings": 256', '"max_position_embeddings": 32')
    )
    with LLM(str(tmp_path), skip_tokenizer_init=True, num_gpu_blocks_override=16, max_num_seqs=1) as llm:
        assert dict(llm.card)["context"] == "128 tokens"
        params = llm.get_default_sampling_params().replace(temperature=0, max_tokens=8, detokenize=False)
        [output] = llm.generate({"prompt_token_ids": list(range(3, 103))}, params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 8


def test_sizes_stay_in_their_bounds() -> None:
    huge = architecture_from_config(
        Path("config.json"),
        {
            **{"architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8, "num_attention_heads": 1},
            **{"num_hidden_layers": 1, "intermediate_size": 8, "max_position_embeddings": 2**31},
            "rope_scaling": {"type": "linear", "factor": 1e6},
        },
    )
    assert context_len(huge) == 2**31
