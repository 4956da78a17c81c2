"""Every family on every backend against transformers in float32: the same logits and the same greedy tokens.

The prompts are ragged and run as one batch, cut into chunks, through block tables in shuffled order. The oracle
reads each prompt with our continuation at once. If its best token at every position is our next token, it would, by
induction, have generated the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from octavo.cache.blocks import make_groups
from octavo.config import ModelConfig
from octavo.kernels.arrays import FloatArray
from octavo.kernels.device import Device
from octavo.kernels.reference.device import ReferenceDevice
from octavo.kernels.registry import HOST_BACKENDS
from octavo.models.architecture import Architecture
from octavo.models.decoder import LayerSlot
from octavo.models.loader import open_checkpoint
from octavo.models.registry import required_tensors
from tests.conftest import TinyFolder
from tests.models.drive import Driver, DriverSetting, greedy
from tests.tiny_models import GEMMA, ONE_SETTING, SIZES, TINY

NEW_TOKENS = 8
#: Lengths around block sizes and windows; longrope's long factors start beyond 16 tokens.
PROMPT_LENS = (1, 9, 17, 40)
LONG_PROMPT_LENS = (17, 18, 33, 50)


def one_group(a: Architecture) -> list[LayerSlot]:
    return [(0, i) for i in range(a.num_layers)]


def groups_by_window(a: Architecture) -> list[LayerSlot]:
    """As in the engine, so that sliding layers free blocks."""
    slots = {
        layer: (group_id, index)
        for group_id, group in enumerate(make_groups(a.windows or (None,) * a.num_layers))
        for index, layer in enumerate(group.layers)
    }
    return [slots[i] for i in range(a.num_layers)]


def alternate_groups(a: Architecture) -> list[LayerSlot]:
    return [(i % 2, i // 2) for i in range(a.num_layers)]


#: seed -> block size, longest chunk, cache groups
SETTINGS = {0: (16, None, one_group), 1: (8, 7, groups_by_window), 2: (32, 3, alternate_groups)}


@cache  # backends that give the same tokens take turns
def oracle_logits(folder: Path, sequences: tuple[tuple[int, ...], ...]) -> list[FloatArray]:
    """transformers' logits after every token but the last, in float32 whatever the weights' dtype."""
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return [model(torch.tensor([list(tokens)])).logits[0, :-1].numpy() for tokens in sequences]


def assert_same_as_transformers(folder: Path, driver: Driver, prompts: list[list[int]], **how: Any) -> None:
    continuations, logits = greedy(driver, prompts, NEW_TOKENS, **how)
    sequences = tuple((*prompt, *continuation) for prompt, continuation in zip(prompts, continuations, strict=True))
    for prompt, continuation, ours, oracle in zip(
        prompts, continuations, logits, oracle_logits(folder, sequences), strict=True
    ):
        assert np.abs(ours - oracle).max() <= 1e-4 * np.abs(oracle).max()
        assert oracle[len(prompt) - 1 :].argmax(axis=-1).tolist() == continuation


def random_prompts(lens: Sequence[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 160, length).tolist() for length in lens]


@pytest.mark.parametrize("backend", list(HOST_BACKENDS), indirect=True)  # one after another, for one model each
@pytest.mark.parametrize(
    ("name", "seed"), [(name, seed) for name in TINY for seed in SETTINGS if seed != 2 or name not in ONE_SETTING]
)
def test_logits_and_tokens_equal_transformers(name: str, seed: int, backend: Device, tiny_folder: TinyFolder) -> None:
    folder = tiny_folder(name, seed)
    checkpoint = open_checkpoint(ModelConfig(model=str(folder)))
    block_size, max_chunk, slots = SETTINGS[seed]
    setting = DriverSetting(block_size=block_size, slots=slots(checkpoint.architecture), seed=seed)
    driver = Driver(backend, checkpoint.architecture, checkpoint, setting)
    prompts = random_prompts(LONG_PROMPT_LENS if "longrope" in name else PROMPT_LENS, seed)
    assert_same_as_transformers(folder, driver, prompts, max_chunk=max_chunk, seed=seed)


@pytest.mark.parametrize(("name", "dtype"), [("llama", "bfloat16"), ("gpt2", "float16"), ("gemma3", "bfloat16")])
def test_half_precision_weights_are_computed_on_exactly(
    name: str, dtype: str, backend: Device, tiny_folder: TinyFolder
) -> None:
    folder = tiny_folder(name, 0, dtype)
    checkpoint = open_checkpoint(ModelConfig(model=str(folder)))
    driver = Driver(backend, checkpoint.architecture, checkpoint, DriverSetting())
    assert_same_as_transformers(folder, driver, random_prompts(PROMPT_LENS))


def test_longrope_uses_the_short_factors_where_no_request_can_be_long(backend: Device, tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("phi3-longrope")
    checkpoint = open_checkpoint(ModelConfig(model=str(folder)))
    driver = Driver(backend, checkpoint.architecture, checkpoint, DriverSetting(max_model_len=16, block_size=8))
    assert_same_as_transformers(folder, driver, random_prompts((1, 3, 4)))


def test_a_sequence_does_not_feel_its_batch(backend: Device, tiny_folder: TinyFolder) -> None:
    checkpoint = open_checkpoint(ModelConfig(model=str(tiny_folder("llama"))))
    driver = Driver(backend, checkpoint.architecture, checkpoint, DriverSetting(block_size=8))
    prompts = random_prompts((5, 30, 12, 8, 40))
    together, logits = greedy(driver, prompts, NEW_TOKENS)
    for prompt, continuation, ours in zip(prompts, together, logits, strict=True):
        [alone], [alone_logits] = greedy(driver, [prompt], NEW_TOKENS, max_chunk=4)
        assert alone == continuation
        np.testing.assert_allclose(alone_logits, ours, atol=1e-4 * np.abs(ours).max())


@pytest.mark.parametrize("name", TINY)
def test_the_table_names_every_tensor_of_the_folder(name: str, tiny_folder: TinyFolder) -> None:
    checkpoint = open_checkpoint(ModelConfig(model=str(tiny_folder(name))))
    required = required_tensors(checkpoint.architecture)
    checkpoint.check(required)
    for tensor, shape in required.items():
        checkpoint.take(tensor, shape).read()
    assert checkpoint.leftovers() == []


@pytest.mark.parametrize("is_saved_later", [False, True])
def test_the_text_part_of_a_model_that_sees(
    is_saved_later: bool, backend: Device, tmp_path: Path, one_torch_thread: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Gemma's tensor names as Google published them, and as in transformers since 4.52."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=GEMMA,
        vision_config=vision | {"image_size": 16, "patch_size": 8},
        mm_tokens_per_image=4,
        image_token_index=150,
    )
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForCausalLM
    auto.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert "language_model.model.norm.weight" in saved
    if is_saved_later:
        changes = {"language_model.model.": "model.language_model.", "vision_tower.": "model.vision_tower."}
        for old, new in changes.items():
            saved = {name.replace(old, new, 1) if name.startswith(old) else name: saved[name] for name in saved}
        save_file(saved, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(ModelConfig(model=str(tmp_path)))
    assert caplog.messages == [f"{tmp_path}: only the model's text part is read: images are refused"]
    driver = Driver(backend, checkpoint.architecture, checkpoint, DriverSetting())
    assert_same_as_transformers(tmp_path, driver, random_prompts(PROMPT_LENS))
    assert checkpoint.leftovers() == []


def test_the_text_part_of_mistral_small(tmp_path: Path, one_torch_thread: None) -> None:
    """Version 3.1 and later. It is the model of the same tensors that takes no images."""
    text = SIZES | {"model_type": "mistral", "head_dim": 16, "sliding_window": None, "rope_theta": 1e5}
    plain = tmp_path / "text"
    config = transformers.MistralConfig(**{key: value for key, value in text.items() if key != "model_type"})
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForCausalLM
    auto.from_config(config, dtype=torch.float32).save_pretrained(plain)
    saved = load_file(plain / "model.safetensors")
    named = {f"language_model.{name}": tensor for name, tensor in saved.items()}
    image = {"multi_modal_projector.linear_1.weight": torch.ones(4, 4), "vision_tower.ln_pre.weight": torch.ones(4)}
    save_file(named | image, tmp_path / "model.safetensors", metadata={"format": "pt"})
    written = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(written))
    checkpoint = open_checkpoint(ModelConfig(model=str(tmp_path)))
    driver = Driver(ReferenceDevice(), checkpoint.architecture, checkpoint, DriverSetting())
    assert_same_as_transformers(plain, driver, random_prompts(PROMPT_LENS))
    assert checkpoint.leftovers() == []
