"""GGUF files as checkpoints: canonical names, layouts undone, configurations filled in."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.config import ModelConfig
from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.reference.dequantize import dequantize
from octavo.models.architecture import Architecture, RopeConfig
from octavo.models.checkpoint import Checkpoint
from octavo.models.gguf import read_gguf
from octavo.models.gguf_names import subtract_one
from octavo.models.loader import open_checkpoint, open_gguf
from octavo.models.registry import required_tensors
from tests.models.gguf_files import TINY_LLAMA, tiny_llama_tensors, write_gguf


def open_file(path: Path) -> Checkpoint:
    return open_checkpoint(ModelConfig(model=str(path)))


def interleave(rows: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """As llama.cpp's converter does with Q and K: interleave the halves of each head's rows."""
    heads = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


@pytest.fixture
def tiny(tmp_path: Path) -> Checkpoint:
    return open_file(write_gguf(tmp_path / "tiny.gguf", "llama", TINY_LLAMA, tiny_llama_tensors()))


def test_a_llama_file_has_every_tensor_of_the_family(tiny: Checkpoint) -> None:
    for name, shape in required_tensors(tiny.architecture).items():
        assert tiny.take(name, shape).read().shape == shape
    assert tiny.leftovers() == []
    assert tiny.num_bytes == 4 * sum(array.size for array in tiny_llama_tensors().values())
    assert tiny.dtype_label == "F32"


def test_metadata_becomes_the_architecture(tiny: Checkpoint) -> None:
    assert tiny.architecture == Architecture(
        family="llama",
        vocab_size=6,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=128,
        norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=3,
        eos_token_ids=(4,),
    )


@pytest.mark.parametrize("quantised", [None, "Q8_0"])
def test_rotary_rows_are_put_back_in_order(tmp_path: Path, quantised: str | None) -> None:
    tensors: dict[str, Any] = dict(tiny_llama_tensors())
    expected = {"q_proj": tensors["blk.0.attn_q.weight"], "k_proj": tensors["blk.0.attn_k.weight"]}
    for name, num_heads in (("blk.0.attn_q.weight", 4), ("blk.0.attn_k.weight", 2)):
        rows = interleave(tensors[name], num_heads)
        tensors[name] = (rows, quantised) if quantised else rows
    tensors["blk.0.attn_output.bias"] = tensors["blk.0.attn_q.bias"] = np.zeros(32, np.float32)
    checkpoint = open_gguf(write_gguf(tmp_path / "f.gguf", "llama", TINY_LLAMA, tensors), "f.gguf")
    for projection, values in expected.items():
        read = dequantize(checkpoint.stored[f"model.layers.0.self_attn.{projection}.weight"].read())
        np.testing.assert_allclose(read, values, atol=0.02 if quantised else 0)


def test_rotary_biases_are_put_back_in_order(tmp_path: Path) -> None:
    bias = np.arange(32, dtype=np.float32)
    tensors = tiny_llama_tensors() | {"blk.0.attn_q.bias": interleave(bias, 4)}
    checkpoint = open_gguf(write_gguf(tmp_path / "f.gguf", "llama", TINY_LLAMA, tensors), "f.gguf")
    assert np.array_equal(dequantize(checkpoint.stored["model.layers.0.self_attn.q_proj.bias"].read()), bias)


def test_long_context_divisors_become_longrope(tmp_path: Path) -> None:
    divisors = np.array([1, 1, 2, 8], np.float32)
    tensors = tiny_llama_tensors() | {"rope_freqs.weight": divisors}
    checkpoint = open_file(write_gguf(tmp_path / "f.gguf", "llama", TINY_LLAMA, tensors))
    assert checkpoint.architecture.rope == RopeConfig(
        scaling={
            "rope_type": "longrope",
            "long_factor": [1, 1, 2, 8],
            "short_factor": [1, 1, 2, 8],
            "original_max_position_embeddings": 128,
            "attention_factor": 1.0,
        }
    )
    assert "rope_freqs.weight" not in checkpoint.stored


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"type": "none"}, None),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rope_scaling_keys(tmp_path: Path, keys: dict[str, Any], scaling: dict[str, Any] | None) -> None:
    metadata = TINY_LLAMA | {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
    checkpoint = open_file(write_gguf(tmp_path / "f.gguf", "llama", metadata, tiny_llama_tensors()))
    assert checkpoint.architecture.rope == RopeConfig(scaling=scaling)


@pytest.mark.parametrize(("template", "ends"), [({}, (4,)), ({"tokenizer.chat_template": "x"}, (4, 5))])
def test_a_chat_model_ends_where_its_turn_does(tmp_path: Path, template: dict[str, str], ends: tuple[int, ...]) -> None:
    tokens = ["<|end|>ish", "b", "ab", "<s>", "</s>", "<|end|>", "<|im_end|>"]
    vocabulary = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1, 1, 1, 3, 3, 3, 1]}
    path = write_gguf(tmp_path / "f.gguf", "llama", TINY_LLAMA | vocabulary | template, tiny_llama_tensors())
    assert open_file(path).architecture.eos_token_ids == ends


def test_sampling_recommendations_are_read(tmp_path: Path) -> None:
    metadata = TINY_LLAMA | {"general.sampling.temp": 0.5, "general.sampling.top_k": 20}
    checkpoint = open_file(write_gguf(tmp_path / "f.gguf", "llama", metadata, tiny_llama_tensors()))
    assert checkpoint.sampling_defaults == {"temperature": 0.5, "top_k": 20}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llama.embedding_length": None}, "'llama.embedding_length' is missing"),
        ({"llama.attention.head_count": 0}, "'llama.attention.head_count' is 0; allowed: 1 to"),
        ({"llama.attention.head_count": "four"}, "'llama.attention.head_count' is 'four'; allowed: a whole number"),
        ({"llama.block_count": 4_000_000_000}, "'llama.block_count' is 4000000000; allowed: 1 to 20"),
        ({"llama.rope.freq_base": float("inf")}, "'llama.rope.freq_base' is inf"),
        ({"llama.rope.scaling.type": "mystery"}, "rope.scaling.type is 'mystery'; Octavo knows none, linear"),
        ({"llama.expert_count": 8}, "'llama.expert_used_count' is missing"),
        ({"split.count": 3}, "is one of 3 parts, but its name does not end in -00001-of-00003.gguf"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.attn_factor": 0.5}, "attn_factor is 0.5"),
        ({"llama.feed_forward_length": 65}, r"mlp.gate_proj.weight' has shape \[64, 32\].* asks for \[65, 32\]"),
        ({"llama.block_count": 3}, r"'model.layers.2.input_layernorm.weight' and 8 more of 29 needed are missing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    metadata = {key: value for key, value in (TINY_LLAMA | change).items() if value is not None}
    path = write_gguf(tmp_path / "odd.gguf", "llama", metadata, tiny_llama_tensors())
    with pytest.raises(ModelLoadError, match=f"odd.gguf.*{message}"):
        open_file(path)


def test_an_unknown_architecture_lists_those_known(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "rwkv.gguf", "rwkv7", {}, {})
    with pytest.raises(UnsupportedModelError, match="'rwkv7'; Octavo reads GGUF files of llama, qwen2, qwen3"):
        open_file(path)


def test_a_norm_of_any_type_has_its_one_taken_off(tmp_path: Path) -> None:
    norm = np.linspace(0.5, 2, 32, dtype=np.float32)
    for dtype in ("F32", "F16", "Q8_0"):
        path = write_gguf(tmp_path / f"{dtype}.gguf", "llama", TINY_LLAMA, {"output_norm.weight": (norm, dtype)})
        read = dequantize(subtract_one(read_gguf(path).tensors["output_norm.weight"]))
        np.testing.assert_allclose(read, norm - 1, atol=0.01)


def test_each_head_of_a_model_with_learned_positions_has_its_own_keys(tmp_path: Path) -> None:
    metadata = {key.replace("llama", "gpt2"): value for key, value in TINY_LLAMA.items()}
    path = write_gguf(tmp_path / "shared.gguf", "gpt2", metadata, tiny_llama_tensors())
    with pytest.raises(ModelLoadError, match=r"shared.gguf: a gpt2 model has a key.value head for each of 4"):
        open_file(path)


def test_an_unknown_tensor_is_left_over(tmp_path: Path) -> None:
    tensors = tiny_llama_tensors() | {"blk.0.surprise.weight": np.ones(4, np.float32)}
    checkpoint = open_file(write_gguf(tmp_path / "f.gguf", "llama", TINY_LLAMA, tensors))
    for name, shape in required_tensors(checkpoint.architecture).items():
        checkpoint.take(name, shape).read()
    assert checkpoint.leftovers() == ["blk.0.surprise.weight"]


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2600), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_never_do_more_than_raise(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    original, path = tmp_path / "tiny.gguf", tmp_path / "changed.gguf"
    if not original.exists():
        write_gguf(original, "llama", TINY_LLAMA, tiny_llama_tensors())
    content = bytearray(original.read_bytes())
    for position, byte in changes:
        content[position] = byte
    path.write_bytes(content)
    with suppress(ModelLoadError):
        checkpoint = open_file(path)
        for name, shape in required_tensors(checkpoint.architecture).items():
            checkpoint.take(name, shape).read()


SMOLLM2 = Architecture(
    family="llama",
    vocab_size=49_152,
    hidden_size=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    max_position_embeddings=8192,
    norm_eps=1e-5,
    tie_word_embeddings=True,
    rope=RopeConfig(theta=100_000.0),
    bos_token_id=1,
    eos_token_ids=(2,),
)
GEMMA3 = Architecture(
    family="gemma3",
    vocab_size=262_144,
    hidden_size=640,
    num_layers=18,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    intermediate_size=2048,
    max_position_embeddings=32_768,
    norm_eps=1e-6,
    activation="gelu_tanh",
    tie_word_embeddings=True,
    rope=RopeConfig(theta=1_000_000.0),
    local_rope=RopeConfig(theta=10_000.0),
    windows=(512, 512, 512, 512, 512, None) * 3,
    attention_scale=256**-0.5,
    bos_token_id=2,
    eos_token_ids=(1,),
)


@pytest.mark.parametrize(("name", "architecture"), [("smollm2", SMOLLM2), ("gemma3-270m", GEMMA3)])
def test_packaged_models(name: str, architecture: Architecture) -> None:
    checkpoint = open_checkpoint(ModelConfig(model=name))
    assert checkpoint.architecture == architecture
    for tensor, shape in required_tensors(architecture).items():
        checkpoint.take(tensor, shape).read()
    assert checkpoint.leftovers() == []


def test_gemma_norms_are_what_was_trained() -> None:
    """GGUF stores w + 1; the trained w is near zero and a bfloat16."""
    norm = open_checkpoint(ModelConfig(model="gemma3-270m")).stored["model.layers.0.self_attn.q_norm.weight"].read()
    values = dequantize(norm)
    assert not np.any(values.view(np.uint32) & 0xFFFF), "the lower half of a float32 that was a bfloat16 is zero"


def test_a_dtype_converts_every_tensor_when_it_is_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "f.gguf", "llama", TINY_LLAMA, tiny_llama_tensors())
    checkpoint = open_checkpoint(ModelConfig(model=str(path), dtype="bfloat16"))
    assert checkpoint.dtype_label == "BF16"
    assert {tensor.read().dtype for tensor in checkpoint.stored.values()} == {"BF16"}


def test_a_value_too_large_for_float16_is_named(tmp_path: Path) -> None:
    tensors = tiny_llama_tensors() | {"output_norm.weight": np.full(32, 1e6, np.float32)}
    path = write_gguf(tmp_path / "large.gguf", "llama", TINY_LLAMA, tensors)
    checkpoint = open_checkpoint(ModelConfig(model=str(path), dtype="float16"))
    with pytest.raises(ModelLoadError, match=r"'model.norm.weight': 1e\+06 does not fit float16.*another dtype"):
        checkpoint.take("model.norm.weight", (32,)).read()
