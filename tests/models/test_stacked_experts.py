"""Stacks of experts in a folder: dense and in MXFP4; what does not fit is an error with the stack's own name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo import SamplingParams
from octavo.config import ModelConfig
from octavo.errors import ConfigError, ModelLoadError, UnsupportedModelError
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.parameters import Parameter
from octavo.kernels.program.recorder import record_model
from octavo.kernels.reference.dequantize import values
from octavo.kernels.reference.device import ReferenceDevice
from octavo.models.checkpoint import Checkpoint
from octavo.models.loader import open_checkpoint
from octavo.models.registry import build_model
from tests.conftest import TinyFolder
from tests.distributed.conftest import engine
from tests.models.drive import Driver, DriverSetting, greedy
from tests.models.test_families import assert_same_as_transformers, random_prompts
from tests.tiny_models import make_tiny_model


def open_model(folder: Path) -> Checkpoint:
    return open_checkpoint(ModelConfig(model=str(folder)))


def test_a_stack_of_experts_that_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = make_tiny_model("granite-moe", tmp_path)
    saved, name = load_file(folder / "model.safetensors"), "model.layers.1.block_sparse_moe.input_linear.weight"
    for wrong in (saved[name][:4], saved[name][:, 1:], saved[name][0]):
        save_file(saved | {name: wrong.clone()}, folder / "model.safetensors")
        with pytest.raises(ModelLoadError, match=rf"'{name}' has shape .* asks for \[5, 160, 48\]"):
            open_model(folder)
    save_file({each: saved[each] for each in saved if each != name}, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=f"'{name}' is missing"):
        open_model(folder)


@pytest.mark.parametrize(
    ("name", "read"), [("granite-moe", "dense, and in fp8"), ("gpt-oss", "dense or in mxfp4, and")]
)
def test_a_stack_in_a_method_that_has_none_is_refused_by_name(
    name: str, read: str, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    saved = load_file(tiny_folder(name) / "model.safetensors")
    codes = {each: tensor.to(torch.float8_e4m3fn) for each, tensor in saved.items() if tensor.dim() == 3}
    save_file(saved | codes, tmp_path / "model.safetensors")
    config = json.loads((tiny_folder(name) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(UnsupportedModelError, match=f"is a stack of experts in fp8; Octavo reads stacks of .* {read}"):
        open_model(tmp_path)
    method = {"quant_method": "gptq", "bits": 4, "group_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    with pytest.raises(ModelLoadError, match=r"qweight' and \d+ more of \d+ needed for g\w+ in gptq are missing"):
        open_model(tmp_path)


#: of hidden and inner sizes in whole blocks of MXFP4
IN_BLOCKS = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
#: E2M1 by its bits: a sign, two of the exponent and one of the fraction
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


@pytest.fixture(scope="module")
def as_published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """gpt-oss with experts in MXFP4, and the same numbers dense."""
    root = tmp_path_factory.mktemp("gpt-oss")
    dense = make_tiny_model("gpt-oss", root / "dense", **IN_BLOCKS, **LAYERS)
    saved = load_file(dense / "model.safetensors")
    numbers, generator = dict(saved), torch.Generator().manual_seed(0)
    for name in [name for name in saved if name.endswith(("gate_up_proj", "down_proj"))]:
        count, inputs, outputs = saved.pop(name).shape
        blocks = torch.randint(256, (count, outputs, inputs // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(122, 125, (count, outputs, inputs // 32), dtype=torch.uint8, generator=generator)
        saved |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        nibbles = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).int()
        matrix = torch.tensor(E2M1)[nibbles] * torch.exp2(scales.float() - 127)[..., None]
        numbers[name] = matrix.flatten(-2).transpose(1, 2).contiguous()
    published = root / "published"
    published.mkdir()
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    method = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": skipped}}
    config = json.loads((dense / "config.json").read_text()) | method
    (published / "config.json").write_text(json.dumps(config))
    save_file(saved, published / "model.safetensors")
    save_file(numbers, dense / "model.safetensors")
    return published, dense


def test_experts_in_mxfp4_are_the_dense_ones(as_published: tuple[Path, Path]) -> None:
    published, dense = map(open_model, as_published)
    assert published.architecture.experts == dense.architecture.experts
    parameters = [parameters_by_name(each) for each in (published, dense)]
    assert set(parameters[0]) == set(parameters[1])
    for name, parameter in parameters[0].items():
        assert np.array_equal(values(parameter), values(parameters[1][name])), name
        assert (parameter.scheme.format is not None) == (".experts." in name and name.endswith("weight"))
    assert published.leftovers() == dense.leftovers() == []


def test_experts_in_mxfp4_give_transformers_tokens(as_published: tuple[Path, Path], one_torch_thread: None) -> None:
    published, dense = open_model(as_published[0]), as_published[1]
    prompts = random_prompts((5, 17))
    assert_same_as_transformers(
        dense, Driver(ReferenceDevice(), published.architecture, published, DriverSetting()), prompts
    )
    exact, ours = (
        np.concatenate(greedy(Driver(device, published.architecture, published, DriverSetting()), prompts, 2)[1])
        for device in (ReferenceDevice(), CpuDevice(2, "int16"))
    )
    assert np.abs(ours - exact).max() <= 2e-3 * np.abs(exact).max()


def test_ranks_have_experts_whole_whose_blocks_they_cannot_divide(as_published: tuple[Path, Path]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, detokenize=False)
    with pytest.raises(ConfigError, match="which divide in runs of 32"):
        engine(as_published[0], 2)
    found = []
    for num_ranks in (1, 2):
        with engine(as_published[0], num_ranks, enable_expert_parallel=True, activation_dtype="int16") as llm:
            outputs = llm.generate(random_prompts((5, 17)), params, use_tqdm=False)
            found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1]


def parameters_by_name(checkpoint: Checkpoint) -> dict[str, Parameter]:
    slots = [(0, index) for index in range(checkpoint.architecture.num_layers)]
    body, heads = record_model(build_model(checkpoint.architecture, checkpoint, slots, max_model_len=64))
    return {each.name: each for recording in (body, *heads.values()) for each in recording.parameters()}


@pytest.mark.parametrize("part", ["blocks", "scales", "bias"])
def test_malformed_codes_of_experts_are_named(part: str, as_published: tuple[Path, Path], tmp_path: Path) -> None:
    published, _ = as_published
    shutil.copy(published / "config.json", tmp_path)
    saved, name = load_file(published / "model.safetensors"), f"model.layers.1.mlp.experts.gate_up_proj_{part}"
    for wrong in (saved[name][1:], saved[name][..., :-1], saved[name].flatten()):
        save_file(saved | {name: wrong.contiguous()}, tmp_path / "model.safetensors")
        with pytest.raises(ModelLoadError, match=f"'{name}' has shape .* asks for"):
            open_model(tmp_path)
    save_file({each: saved[each] for each in saved if each != name}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=f"'{name}' is missing"):
        open_model(tmp_path)
    if part != "bias":
        wrong = torch.full_like(saved[name], 255).to(torch.uint8 if part == "scales" else torch.float32)
        save_file(saved | {name: wrong}, tmp_path / "model.safetensors")
        read = parameters_by_name(open_model(tmp_path))["model.layers.1.mlp.experts.2.up_proj.weight"]
        with pytest.raises(ModelLoadError, match=f"'{name}', expert 2 has (the exponent 255|dtype F32)"):
            read.dense()


def test_hidden_sizes_that_blocks_do_not_divide_are_refused(as_published: tuple[Path, Path], tmp_path: Path) -> None:
    config = json.loads((as_published[0] / "config.json").read_text()) | {"intermediate_size": 40}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(as_published[0] / "model.safetensors", tmp_path)
    with pytest.raises(ModelLoadError, match=r"experts.0.down_proj.weight' has 40 inputs, .* multiples of 32"):
        open_model(tmp_path)
