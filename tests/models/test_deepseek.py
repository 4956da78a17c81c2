"""What is DeepSeek's own: pairs in halves, fp8 in blocks, layers that guess tokens, one latent for all heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

from octavo import LLM, SamplingParams  # noqa: E402
from octavo.config import ModelConfig  # noqa: E402
from octavo.engine.options import engine_config  # noqa: E402
from octavo.errors import ModelLoadError  # noqa: E402
from octavo.kernels.cpu.device import CpuDevice  # noqa: E402
from octavo.kernels.device import Device  # noqa: E402
from octavo.models.checkpoint import Checkpoint  # noqa: E402
from octavo.models.loader import open_checkpoint  # noqa: E402
from octavo.observe.events import BlockCopied  # noqa: E402
from octavo.worker.plan import Planner  # noqa: E402
from octavo.worker.task import WorkerTask  # noqa: E402
from tests.conftest import TinyFolder  # noqa: E402
from tests.models.drive import Driver, DriverSetting, greedy  # noqa: E402
from tests.models.test_families import assert_same_as_transformers, random_prompts  # noqa: E402
from tests.quantization.written_models import write_model  # noqa: E402
from tests.tiny_models import make_tiny_model  # noqa: E402

PROMPTS = random_prompts((3, 17, 30))


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(ModelConfig(model=str(folder)))


def driver_of(backend: Device, folder: Path) -> Driver:
    checkpoint = opened(folder)
    return Driver(backend, checkpoint.architecture, checkpoint, DriverSetting())


def test_pairs_may_be_halves_and_sizes_fill_vectors(backend: Device, tmp_path: Path, one_torch_thread: None) -> None:
    """And weights of 16 bits are computed on exactly."""
    sizes = {"kv_lora_rank": 32, "qk_rope_head_dim": 16, "v_head_dim": 16, "q_lora_rank": None}
    folder = make_tiny_model(
        "deepseek-v3", tmp_path, dtype="bfloat16", rope_interleave=False, n_group=1, topk_group=1, **sizes
    )
    assert_same_as_transformers(folder, driver_of(backend, folder), PROMPTS, max_chunk=11)


def test_fp8_in_blocks_answers_like_the_dense_model(backend: Device, tmp_path: Path, one_torch_thread: None) -> None:
    """As DeepSeek V3 is published: the last rows of kv_a_proj_with_mqa fill half a block."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "kv_lora_rank": 40,
        "v_head_dim": 16,
    }
    source = make_tiny_model("deepseek-v3", tmp_path / "source", q_lora_rank=32, **sizes)
    write_model("fp8-blocks", source, tmp_path / "quantised", tmp_path / "dense")
    drivers = [driver_of(backend, tmp_path / which) for which in ("quantised", "dense")]
    answers, logits = zip(*(greedy(driver, PROMPTS, 4) for driver in drivers), strict=True)
    assert answers[0] == answers[1]
    for one, other in zip(*logits, strict=True):
        np.testing.assert_allclose(one, other, atol=(0 if backend.name == "reference" else 2e-2) * np.abs(other).max())


def test_layers_that_guess_further_tokens_are_left_out_and_said(
    tiny_folder: TinyFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tiny_folder("deepseek-v3")
    tensors = load_file(source / "model.safetensors")
    guessing = {
        name.replace("layers.1.", "layers.2."): each.clone() for name, each in tensors.items() if "layers.1." in name
    }
    save_file(
        {**tensors, **guessing, "model.layers.2.eh_proj.weight": torch.zeros(48, 96)}, tmp_path / "model.safetensors"
    )
    config = json.loads((source / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = opened(tmp_path)
    assert caplog.messages == [f"{tmp_path}: 1 layer that guesses further tokens is not used"]
    assert checkpoint.stored.keys() == opened(source).stored.keys()


def test_a_block_holds_one_latent_and_one_key_a_token(tiny_folder: TinyFolder) -> None:
    for dtype, size in (("bfloat16", 2), ("fp8", 1)):
        sizes = {"dtype": "bfloat16", "kv_cache_dtype": dtype, "max_model_len": 64}
        task = WorkerTask.of(engine_config(model=str(tiny_folder("deepseek-v2")), **sizes))
        plan = Planner.of(task, CpuDevice(1)).plan(task)
        assert plan.token_bytes == 2 * (24 + 8) * size, "layers, numbers and bytes of each"


@pytest.mark.parametrize(
    "options", [{"kv_cache_dtype": "fp8"}, {"kv_cache_dtype": "int8", "calculate_kv_scales": True}, {}]
)
def test_codes_of_latents_are_shared_and_copied(
    options: dict[str, Any], tiny_folder: TinyFolder, tmp_path: Path, one_torch_thread: None
) -> None:
    """Both backends answer alike, the second time from the prefix tree. {}: the checkpoint says the type and one scale,
    as vLLM reads it for latents."""
    folder, answers = tiny_folder("deepseek-v3"), []
    if not options:
        folder = with_scales(folder, tmp_path)
    for backend in ("cpu", "reference"):
        sizes = {"max_model_len": 64, "num_gpu_blocks_override": 40, "check_invariants": True, "dtype": "float32"}
        with LLM(str(folder), skip_tokenizer_init=True, backend=backend, **sizes, **options) as llm:
            params = SamplingParams(n=2, seed=3, max_tokens=4, ignore_eos=True, detokenize=False)
            for _ in range(2):
                outputs = llm.generate([list(prompt) for prompt in PROMPTS], params, use_tqdm=False)
                answers.append([[one.token_ids for one in output.outputs] for output in outputs])
            assert outputs[-1].num_cached_tokens == 16
            assert any(isinstance(event, BlockCopied) for event in llm.events)
            line = dict(llm.card)["KV cache"]
            assert f"as {options.get('kv_cache_dtype', 'int8')} with scales" in line
    assert all(each == answers[0] for each in answers)


def with_scales(source: Path, folder: Path) -> Path:
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    for index in range(config["num_hidden_layers"]):
        tensors[f"model.layers.{index}.self_attn.attn.k_scale"] = torch.tensor(1 / 40)
    save_file(tensors, folder / "model.safetensors")
    scheme = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}
    groups = {"none": {"targets": ["Nothing"], "weights": {"num_bits": 8, "type": "int"}}}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "config_groups": groups, "kv_cache_scheme": scheme
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kv_lora_rank", 23, "heads have 31 dimensions"),
        ("kv_lora_rank", 26, r"kv_a_proj_with_mqa.weight' has shape \[32, 48\]"),
        ("qk_rope_head_dim", 7, "dimensions"),
        ("q_lora_rank", None, r"self_attn.q_proj.weight' .*missing"),
        ("num_attention_heads", 0, "num_attention_heads is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_errors_of_ours(
    key: str, value: object, message: str, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    for path in tiny_folder("deepseek-v3").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=message):
        opened(tmp_path)
