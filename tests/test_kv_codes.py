"""Engines with KV blocks of 8 bits: shared, copied and taken away, they answer as undisturbed; and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

from octavo import LLM, SamplingParams  # noqa: E402
from octavo.errors import ConfigError  # noqa: E402
from octavo.observe.events import BlockCopied  # noqa: E402
from tests.company import ENGINE, Company, prompt_of  # noqa: E402
from tests.conftest import TinyFolder  # noqa: E402

Scaled = Callable[[str], Path]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module")
def scaled(tiny_folder: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> Scaled:
    """A checkpoint with scales for codes of the given type ("float" or "int")."""

    def make(kind: str) -> Path:
        source, folder = tiny_folder("qwen3", 0, "float32"), tmp_path_factory.mktemp(kind)
        config = json.loads((source / "config.json").read_text())
        unit = {"float": 1 / 100, "int": 1 / 30}[kind]
        tensors = load_file(source / "model.safetensors")
        for index in range(config["num_hidden_layers"]):
            tensors[f"model.layers.{index}.self_attn.k_scale"] = torch.tensor(unit * (1 + index))
            tensors[f"model.layers.{index}.self_attn.v_scale"] = torch.tensor([2 * unit])
        save_file(tensors, folder / "model.safetensors")
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "config_groups": {"none": {"targets": ["Nothing"], "weights": {"num_bits": 8, "type": "int"}}},
            "kv_cache_scheme": {"num_bits": 8, "type": kind, "strategy": "tensor", "dynamic": False},
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def engine(folder: Path, **options: Any) -> LLM:
    sizes = {"max_model_len": 256, "max_num_seqs": 40, "num_gpu_blocks_override": 300, "backend": "cpu"}
    return LLM(str(folder), **ENGINE | sizes | options)


def cache_line(llm: LLM) -> str:
    return dict(llm.card)["KV cache"]


@pytest.mark.parametrize("kind", ["float", "int"])
def test_an_answer_does_not_depend_on_its_company(kind: str, scaled: Scaled) -> None:
    """Prefix hits, batches, chunks and a preemption, to the bit; the checkpoint says the type and the scales."""
    folder = scaled(kind)

    def make(**options: Any) -> LLM:
        return engine(folder, deterministic=True, num_threads=2, **options)

    with make() as llm:
        assert cache_line(llm).endswith(f"as {'fp8' if kind == 'float' else 'int8'} with scales of the checkpoint")
    Company(length=150, batches=(7,), budgets=(40,), kept=(3,), few_blocks=17).check(make)


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_samples_share_coded_blocks_and_copy_the_last(dtype: str, tiny_folder: TinyFolder) -> None:
    prompt = prompt_of(0, 37)
    with engine(tiny_folder("llama", 0, "float32"), kv_cache_dtype=dtype, calculate_kv_scales=True) as llm:
        params = SamplingParams(n=4, seed=3, max_tokens=20, ignore_eos=True, detokenize=False)
        (together,) = llm.generate([prompt], params, use_tqdm=False)
        assert sum(isinstance(event, BlockCopied) for event in llm.events) == 3
        assert len({tuple(each.token_ids) for each in together.outputs}) == 4
        for place, each in enumerate(together.outputs):  # its third block is a copy, filled by its own tokens
            tokens = [*prompt, *each.token_ids[:12]]
            salted = {"prompt_token_ids": tokens, "cache_salt": str(place)}
            again, fresh = (llm.generate([one], GREEDY, use_tqdm=False)[0] for one in (tokens, salted))
            assert (again.num_cached_tokens, fresh.num_cached_tokens) == (48, 0)
            assert again.outputs[0].token_ids == fresh.outputs[0].token_ids


def test_both_backends_answer_alike(scaled: Scaled, tiny_folder: TinyFolder) -> None:
    prompts = [prompt_of(seed, 20 + 9 * seed) for seed in range(3)]
    folders: list[tuple[Path, dict[str, Any]]] = [(scaled("float"), {}), (scaled("int"), {})]
    folders += [(tiny_folder("llama", 0, "float32"), {"kv_cache_dtype": "int8", "calculate_kv_scales": True})]
    for folder, options in folders:
        answers = []
        for backend in ("cpu", "reference"):
            with engine(folder, backend=backend, **options) as llm:
                outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
                answers.append([output.outputs[0].token_ids for output in outputs])
        assert answers[0] == answers[1]


def test_a_pool_holds_four_times_the_tokens_of_float32(tiny_folder: TinyFolder) -> None:
    folder, held = tiny_folder("llama", 0, "float32"), {}
    for dtype in ("float32", "fp8"):
        options = {"kv_cache_dtype": dtype, "kv_cache_memory_bytes": 1 << 18, "num_gpu_blocks_override": None}
        with engine(folder, **options) as llm:
            held[dtype] = int(cache_line(llm).split()[0].replace(",", "")) + 1
            assert llm.memory()["KV blocks"] <= 1 << 18
    assert 4 * held["float32"] <= held["fp8"] < 4 * (held["float32"] + 1)


def test_calibration_is_the_same_at_every_start(tiny_folder: TinyFolder) -> None:
    folder, prompt, answers = tiny_folder("gemma3", 0, "float32"), prompt_of(1, 60), []
    for before in ([], [prompt_of(2, 90)]):  # the second engine answers another prompt first
        with engine(folder, kv_cache_dtype="int8", calculate_kv_scales=True) as llm:
            assert cache_line(llm).endswith("as int8 with scales calibrated on 256 tokens")
            answers.append(llm.generate([*before, prompt], GREEDY, use_tqdm=False)[-1].outputs[0].token_ids)
    assert answers[0] == answers[1]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kv_cache_dtype": "int8"}, "kv_cache_dtype is 'int8', and the checkpoint has no k_scale"),
    ({"calculate_kv_scales": True}, "calculate_kv_scales is set, but KV blocks hold float32"),
    ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype='fp8_e5m2' is not supported yet: KV blocks of 8 bits hold 'fp8'"),
    (
        {"kv_cache_dtype": "fp8", "calculate_kv_scales": True, "pipeline_parallel_size": 2},
        "calculate_kv_scales is set and pipeline_parallel_size is 2, allowed is 1",
    ),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_what_cannot_be_is_an_error_with_a_way_out(options: dict[str, Any], said: str, tiny_folder: TinyFolder) -> None:
    with pytest.raises(ConfigError, match=said):
        engine(tiny_folder("llama", 0, "float32"), **options)
