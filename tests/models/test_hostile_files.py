"""Broken model files give an answer, or one of Octavo's errors that names file and key; nothing else.

Seeds change files at random (hostile_files.py). The named cases once raised an error from Python or numpy, or none at
all.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.config import ModelConfig
from octavo.errors import ModelLoadError, OctavoError, TokenizerError
from octavo.models.checkpoint import Checkpoint
from octavo.models.loader import open_checkpoint
from octavo.text.tokenizer import named_tokenizer
from tests.conftest import TinyFolder
from tests.models.good_files import byte_level_files
from tests.models.hostile_files import TARGETS, run_seed

NUM_SEEDS = 60


@pytest.mark.parametrize("target", TARGETS)
def test_changed_files_end_in_an_answer_or_in_an_error_of_ours(
    target: str, tmp_path: Path, tiny_folder: TinyFolder
) -> None:
    def files_of(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tiny_folder(name).iterdir()}

    results = [run_seed(target, seed, tmp_path / "model", files_of) for seed in range(NUM_SEEDS)]
    assert any(result != "ok" for result in results), "some change is noticed"


def open_model(folder: Path) -> Checkpoint:
    return open_checkpoint(ModelConfig(model=str(folder)))


@pytest.fixture
def folder(tiny_folder: TinyFolder, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny model whose files a test may change."""

    def copied(name: str) -> Path:
        for path in tiny_folder(name).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        return tmp_path

    return copied


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **values}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 0.0, 3.0]}
CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a class that is a list": ("llama", {"architectures": [["LlamaForCausalLM"]]}, r"architectures is \[\['Llama"),
    "classes that are no list": ("llama", {"architectures": "LlamaForCausalLM"}, "architectures is 'Llama.*: a list"),
    "a type that is an object": ("llama", {"architectures": None, "model_type": {}}, "model_type is {}"),
    "an activation that is a list": ("llama", {"hidden_act": ["silu"]}, r"hidden_act is \['silu'\]"),
    "layer types that are lists": ("gemma3", {"layer_types": [["full_attention"]] * 4}, "layer_types is"),
    "a number beyond float64": (
        "llama",
        {"rms_norm_eps": 10**400},
        "rms_norm_eps is a number of 1329 bits; allowed: a number",
    ),
    "a norm below zero": ("llama", {"rms_norm_eps": -1}, "rms_norm_eps is -1; allowed: a number from 0"),
    "not a number": ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    "a scale of nothing": ("gemma3", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0; allowed: a number ab"),
    "a scale of a negative": ("gemma3", {"query_pre_attn_scalar": -4}, "query_pre_attn_scalar is -4"),
    "a cap of nothing": ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0; allowed: a number ab"),
    "rope by text": ("llama", rope("linear", factor="4"), r"rope_parameters.factor is '4'; allowed: a number from"),
    "rope without a factor": ("llama", rope("dynamic"), "key 'rope_parameters.factor' is missing"),
    "a ramp without length": ("llama", rope("llama3", **LLAMA3), "low_freq_factor 4 and high_freq_factor 4"),
    "a ramp beyond numbers": ("llama", rope("yarn", factor=4, beta_fast=1e-320), "rope_parameters.beta_fast is"),
    "a factor of nothing": ("llama", rope("longrope", **FACTORS), "rope_parameters.long_factor is .*from 0.0001 to"),
    "too few factors": ("llama", rope("longrope", short_factor=[1], long_factor=[1]), "short_factor holds 1 factors"),
    "an original length of nothing": (
        "llama",
        rope("yarn", factor=4, original_max_position_embeddings=0),
        "rope_parameters.original_max_position_embeddings is 0",
    ),
    "rope settings that are a text": ("gemma3", {"rope_parameters": "x"}, "rope_parameters is 'x'; allowed: an object"),
    "a text too long to print": ("llama", {"hidden_act": "x" * 10**6}, r"hidden_act is 'xxx.{,90}; allowed"),
    "a flag of another family by number": ("opt", {"do_layer_norm_before": 0}, "do_layer_norm_before is 0; allowed"),
    "a width that is a text": ("opt", {"word_embed_proj_dim": "48"}, "word_embed_proj_dim is '48'; allowed: 1 to"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_json(case: str, folder: Callable[[str], Path]) -> None:
    name, values, message = CONFIGS[case]
    path = folder(name) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ModelLoadError, match=f"/config.json: .*{message}"):
        open_model(path.parent)


GENERATION: dict[str, tuple[dict[str, Any], str]] = {
    "below zero": ({"temperature": -1}, "temperature cannot be a default: temperature is -1, allowed is from 0"),
    "above its range": ({"top_p": 1.5}, "top_p cannot be a default: top_p is 1.5, allowed is above 0 to 1"),
    "nothing": ({"max_new_tokens": 0}, "max_new_tokens cannot be a default: max_tokens is 0, allowed is 1 or more"),
    "not whole": ({"top_k": 2.5}, "top_k cannot be a default: top_k is 2.5"),
    "a text": ({"top_k": "50"}, "top_k is '50'; allowed: a number"),
    "a list": ({"temperature": [1]}, r"temperature is \[1\]"),
    "not a number": ({"min_p": float("nan")}, "min_p cannot be a default: min_p is nan"),
    "beyond float64": ({"temperature": 10**400}, "temperature cannot be a default"),
    "ends that are lists": ({"eos_token_id": [[2]]}, r"eos_token_id is \[\[2\]\]; allowed: a token id or a list"),
}


@pytest.mark.parametrize("case", GENERATION)
def test_generation_config_json(case: str, folder: Callable[[str], Path]) -> None:
    values, message = GENERATION[case]
    path = folder("llama") / "generation_config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ModelLoadError, match=f"/generation_config.json: {message}"):
        open_model(path.parent)


def test_a_header_whose_types_are_no_names(folder: Callable[[str], Path]) -> None:
    header = json.dumps({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = folder("llama") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ModelLoadError, match=r"tensor 'a' has dtype \['F32'\], allowed is a type's name"):
        open_model(path.parent)


TOKENIZER_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "tokens by name": (
        {"added_tokens_decoder": {"x": {"content": "y"}}},
        "added_tokens_decoder is .*ids as keys",
    ),
    "tokens in a list": ({"added_tokens_decoder": [1]}, r"added_tokens_decoder is \[1\]; allowed: an object"),
    "a token that is a number": (
        {"added_tokens_decoder": {"260": 5}},
        "added_tokens_decoder.260 is 5; allowed: an",
    ),
    "a flag that is a text": (
        {"added_tokens_decoder": {"260": {"content": "y", "lstrip": "no"}}},
        "added_tokens_decoder.260.lstrip is 'no'; allowed: true and false",
    ),
    "half a character": (
        {"added_tokens_decoder": {"260": {"content": "\ud800"}}},
        r"added_tokens_decoder.260.content is '.ud800'; allowed: whole characters",
    ),
    "a begin that is a list": ({"bos_token": ["<s>"]}, r"bos_token is \['<s>'\]; allowed: a text"),
    "a begin that nobody knows": (
        {"bos_token": "<nowhere>", "add_bos_token": True},
        "add_bos_token is true, but there is no bos_token .*in the vocabulary",
    ),
    "a begin by text": ({"add_bos_token": "yes"}, "add_bos_token is 'yes'; allowed: true and false"),
    "templates without names": ({"chat_template": [{"template": "x"}]}, r"key 'chat_template\[0\].name' is missing"),
    "templates that are numbers": ({"chat_template": [5]}, r"chat_template\[0\] is 5; allowed: an object"),
    "names that are lists": (
        {"chat_template": [{"name": [], "template": ""}]},
        r"chat_template\[0\].name is \[\]; allowed: a text",
    ),
    "a template that is a number": ({"chat_template": 5}, "chat_template is 5; allowed: a text"),
}


@pytest.mark.parametrize("case", TOKENIZER_CONFIGS)
def test_tokenizer_config_json(case: str, tmp_path: Path) -> None:
    values, message = TOKENIZER_CONFIGS[case]
    (tmp_path / "tokenizer.json").write_bytes(byte_level_files()["tokenizer.json"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(OctavoError, match=f"/tokenizer_config.json: {message}"):
        named_tokenizer(str(tmp_path))


def test_a_tokenizer_that_makes_its_library_panic(tmp_path: Path) -> None:
    """A panic raises no Exception, so it would end a process that catches errors."""
    tokenizer = json.loads(byte_level_files()["tokenizer.json"])
    tokenizer["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TokenizerError, match=f"^{tmp_path}: the tokenizer's files are broken"):
        named_tokenizer(str(tmp_path))


NAMES = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json")
TEXT_NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a link"])
@pytest.mark.parametrize("name", [*NAMES, *TEXT_NAMES])
def test_what_is_no_file_is_refused_at_once(name: str, kind: str, folder: Callable[[str], Path]) -> None:
    path = folder("llama") / name
    (path.parent / "tokenizer.json").write_bytes(byte_level_files()["tokenizer.json"])
    path.unlink(missing_ok=True)
    {"a folder": path.mkdir, "a pipe": lambda: os.mkfifo(path), "a link": lambda: path.symlink_to("gone")}[kind]()
    said: list[str] = []

    def read() -> None:
        try:
            named_tokenizer(str(path.parent)) if name in TEXT_NAMES else open_model(path.parent)
        except OctavoError as error:
            said.append(str(error))

    reader = threading.Thread(target=read, daemon=True)  # so that one that waits for a pipe fails this test alone
    reader.start()
    reader.join(30)
    assert [f"{path} is {kind}" in text for text in said] == [True]


def test_a_model_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(ModelLoadError, match=r"model.gguf is neither a folder nor a regular file"):
        open_model(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["~nobody-of-that-name/model", "x" * 5000, "x/" * 200, "a\0b", "/proc/1/root/x/y:z"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ModelLoadError, match=r"^.{,150}allowed are a folder"):
        open_checkpoint(ModelConfig(model=name))


def test_a_byte_order_mark_is_no_fault_and_another_encoding_is_named(folder: Callable[[str], Path]) -> None:
    path = folder("llama") / "config.json"
    text = path.read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert open_model(path.parent).architecture.vocab_size == 160
    path.write_bytes(text.replace("silu", "sil\xfc").encode("latin-1"))
    with pytest.raises(ModelLoadError, match=r"config.json is not valid JSON \('utf-8' codec can't decode byte 0xfc"):
        open_model(path.parent)
    path.write_text(text)
    (path.parent / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + byte_level_files()["tokenizer.json"])
    assert named_tokenizer(str(path.parent)).decode([256]) == "ab"
    (path.parent / "chat_template.jinja").write_bytes(b"\xff{{ messages }}")
    with pytest.raises(OctavoError, match=r"chat_template.jinja is not UTF-8: invalid start byte at byte 0"):
        named_tokenizer(str(path.parent))


def test_a_key_that_comes_twice_must_say_the_same(folder: Callable[[str], Path]) -> None:
    path = folder("llama") / "config.json"
    text = path.read_text().rstrip().rstrip("}")
    path.write_text(text + ', "vocab_size": 160}')
    assert open_model(path.parent).architecture.vocab_size == 160
    path.write_text(text + ', "vocab_size": 161}')
    with pytest.raises(ModelLoadError, match=r"config.json is not valid JSON \(key 'vocab_size' appears twice"):
        open_model(path.parent)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting(opening: bytes, folder: Callable[[str], Path]) -> None:
    path = folder("llama") / "config.json"
    path.write_bytes(opening * 100_000)
    with pytest.raises(ModelLoadError, match=r"config.json is not valid JSON"):
        open_model(path.parent)


def test_a_file_of_impossible_size_is_not_read(folder: Callable[[str], Path]) -> None:
    path = folder("llama") / "config.json"
    os.truncate(path, 1 << 40)  # takes no room on the disk
    with pytest.raises(ModelLoadError, match=r"config.json has 1099511627776 bytes; allowed are"):
        open_model(path.parent)
