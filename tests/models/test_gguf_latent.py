"""GGUF files with latent attention: transformers' tokens from both forms of kv_b_proj; and bad numbers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402

from octavo.config import ModelConfig  # noqa: E402
from octavo.errors import ModelLoadError, OctavoError  # noqa: E402
from octavo.kernels.device import Device  # noqa: E402
from octavo.kernels.reference.dequantize import dequantize  # noqa: E402
from octavo.models.checkpoint import Checkpoint  # noqa: E402
from octavo.models.gguf import read_gguf  # noqa: E402
from octavo.models.gguf_config import architecture_from_gguf  # noqa: E402
from octavo.models.loader import open_checkpoint  # noqa: E402
from tests.models.drive import Driver, DriverSetting  # noqa: E402
from tests.models.gguf_files import Tensor, in_the_table, write_gguf  # noqa: E402
from tests.models.test_families import assert_same_as_transformers, random_prompts  # noqa: E402
from tests.tiny_models import make_tiny_model  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

FACTOR, ALL_DIM = 4.0, 1.3
#: GGUF has one number for YaRN's two; kv_lora_rank in whole blocks of 32
CHANGES: dict[str, dict[str, Any]] = {
    "deepseek-v2": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": FACTOR,
            "mscale": ALL_DIM,
            "mscale_all_dim": ALL_DIM,
            "original_max_position_embeddings": 64,
        }
    },
    "deepseek-v3": {"attention_bias": False},
}
PROMPTS = random_prompts((3, 17, 30))


@pytest.fixture(scope="module", params=CHANGES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latent") / request.param
    return make_tiny_model(request.param, path, kv_lora_rank=32, qk_nope_head_dim=32, **CHANGES[request.param])


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(ModelConfig(model=str(path)))


def metadata(folder: Path, *, is_split: bool) -> dict[str, Any]:
    """As llama.cpp's converter writes it, and before it split matrices of latents."""
    a = opened(folder).architecture
    assert a.experts is not None
    assert a.latent is not None
    assert a.rope is not None
    c, routing, own = a.latent, a.experts.routing, "_mla" if is_split else ""
    values: dict[str, Any] = {
        "context_length": a.max_position_embeddings,
        "embedding_length": a.hidden_size,
        "block_count": a.num_layers,
        "feed_forward_length": a.intermediate_size,
        "attention.head_count": a.num_heads,
        "attention.head_count_kv": 1 if is_split else a.num_heads,
        "attention.layer_norm_rms_epsilon": a.norm_eps,
        "attention.kv_lora_rank": c.rank,
        f"attention.key_length{own}": c.key_dim + c.rotary_dim,
        f"attention.value_length{own}": c.value_dim,
        "rope.dimension_count": c.rotary_dim,
        "rope.freq_base": a.rope.theta,
        "leading_dense_block_count": len(a.experts.dense_layers),
        "expert_count": routing.num_experts,
        "expert_used_count": routing.num_chosen,
        "expert_feed_forward_length": a.experts.intermediate_size,
        "expert_shared_count": 2,
        "expert_weights_scale": routing.scale,
        "expert_weights_norm": routing.renormalises,
        "expert_group_count": routing.num_groups,
        "expert_group_used_count": routing.top_groups,
    }
    if is_split:
        values |= {"attention.key_length": c.rank + c.rotary_dim, "attention.value_length": c.rank}
    if c.query_rank is not None:
        values["attention.q_lora_rank"] = c.query_rank
    if routing.scoring == "sigmoid":
        values["expert_gating_func"] = int(gguf.ExpertGatingFuncType.SIGMOID)
    if a.rope.scaling is not None:
        scaling = {
            "type": "yarn",
            "factor": FACTOR,
            "original_context_length": 64,
            "yarn_log_multiplier": 0.1 * ALL_DIM,
        }
        values |= {f"rope.scaling.{key}": value for key, value in scaling.items()}
    tokens = {"tokenizer.ggml.tokens": [f"t{i}" for i in range(a.vocab_size)]}
    return {f"deepseek2.{key}": value for key, value in values.items()} | tokens


def tensors(folder: Path, *, is_split: bool) -> dict[str, Tensor]:
    c = opened(folder).architecture.latent
    assert c is not None
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, 2)
    found: dict[str, Any] = {}
    stacks: dict[str, list[Any]] = {}
    for name, values in sorted(load_file(folder / "model.safetensors").items()):
        theirs = table.get_name(in_the_table("deepseek2", name), (".weight", ".bias"))
        assert theirs is not None, name
        if ".experts." in name:
            stacks.setdefault(theirs, []).append(values)
        elif is_split and "kv_b_proj" in name:
            heads = values.reshape(-1, c.key_dim + c.value_dim, c.rank)
            found[theirs.replace("kv_b", "k_b")] = np.ascontiguousarray(heads[:, : c.key_dim].swapaxes(1, 2))
            found[theirs.replace("kv_b", "v_b")] = np.ascontiguousarray(heads[:, c.key_dim :])
        else:
            found[theirs] = values
    return found | {name: np.stack(each) for name, each in stacks.items()}


def written(folder: Path, path: Path, *, is_split: bool = True, **changes: Any) -> Path:
    keys = metadata(folder, is_split=is_split) | {f"deepseek2.{key}": value for key, value in changes.items()}
    return write_gguf(path / "m.gguf", "deepseek2", keys, tensors(folder, is_split=is_split))


@pytest.mark.parametrize("is_split", [True, False])
def test_it_gives_transformers_tokens(is_split: bool, folder: Path, backend: Device, tmp_path: Path) -> None:
    checkpoint = opened(written(folder, tmp_path, is_split=is_split))
    driver = Driver(backend, checkpoint.architecture, checkpoint, DriverSetting())
    assert_same_as_transformers(folder, driver, PROMPTS, max_chunk=11)
    assert checkpoint.leftovers() == []


def test_angles_and_scores_are_the_folders(folder: Path, tmp_path: Path) -> None:
    ours, theirs = opened(written(folder, tmp_path)).architecture, opened(folder).architecture
    assert ours.family == theirs.family
    assert ours.experts == theirs.experts
    assert ours.attention_scale == pytest.approx(theirs.attention_scale)
    if theirs.rope is not None and theirs.rope.scaling is not None:
        sharpening = 1 + 0.1 * ALL_DIM * log(FACTOR)
        assert ours.attention_scale == pytest.approx(40**-0.5 * sharpening**2)


def test_blocks_of_both_parts_are_made_dense(folder: Path, tmp_path: Path) -> None:
    """Each in its own type: only a dense one is kept in it."""
    parts = tensors(folder, is_split=True)
    changed = {name: (each, "Q8_0" if "k_b" in name else "Q4_0") for name, each in parts.items() if "_b." in name}
    changed = {name: each for name, each in changed.items() if "k_b" in name or "v_b" in name}
    keys = metadata(folder, is_split=True)
    plain = opened(write_gguf(tmp_path / "plain.gguf", "deepseek2", keys, parts))
    blocks = opened(write_gguf(tmp_path / "blocks.gguf", "deepseek2", keys, parts | changed))
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    exact, rounded = (dequantize(each.stored[name].read()) for each in (plain, blocks))
    error = np.abs(exact - rounded).reshape(6, -1, 32).max((0, 2))
    assert error[:32].max() < 0.01 < error[32:].max() < 0.2, "eight bits of keys, four of values"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("expert_group_count", 3, "expert_group_count' is 3; allowed: numbers that divide expert_count, 8"),
        ("expert_group_used_count", 9, "expert_group_used_count' is 9; allowed: 1 to 4"),
        ("expert_gating_func", 3, "expert_gating_func' is 3; allowed: 1 to 2"),
        ("expert_weights_norm", 1, "expert_weights_norm' is 1; allowed: true or false"),
        ("attention.key_length_mla", 8, "key_length_mla' is 8; allowed: 9 to"),
        ("attention.kv_lora_rank", 16, r"k_b_proj has shape \[6, 32, 32\], but .* asks for \[6, 16, 32\]"),
        ("leading_dense_block_count", 3, "leading_dense_block_count' is 3; allowed: 0 to 2"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_their_key(
    key: str, value: Any, message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        opened(written(folder, tmp_path, **{key: value}))


def test_any_number_is_read_or_refused(folder: Path, tmp_path: Path) -> None:
    file = read_gguf(written(folder, tmp_path))
    for key in (each for each in file.metadata if each.startswith("deepseek2.")):
        for value in (0, 1, 2**31, -1, 0.5, float("nan"), "one", True, np.arange(2)):
            with suppress(OctavoError):
                assert architecture_from_gguf(replace(file, metadata={**file.metadata, key: value})).latent is not None
